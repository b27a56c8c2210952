// Runs the launches of a job file under a sanitizer, on buffers of exactly the size that was asked for.
//
// Job, all numbers uint64: buffers; per buffer its size and bytes; launches; per launch the kernel's name (size,
// bytes), grid, threads, arguments; per argument a buffer (its number + 1, offset) or a value (0, size, bytes).
// Afterwards the buffers' bytes are written to the second file.
#include <fstream>
#include <string>
#include KERNELS

namespace {
std::ifstream job;
uint64_t number() { uint64_t n; job.read(reinterpret_cast<char*>(&n), 8); return n; }
std::vector<char> bytes() { std::vector<char> b(number()); job.read(b.data(), std::streamsize(b.size())); return b; }
}  // namespace

int main(int, char** files) {
    job.open(files[1], std::ios::binary);
    std::vector<std::vector<char>> buffers(number());
    for (auto& buffer : buffers) buffer = bytes();
    for (uint64_t left = number(); left; --left) {
        const auto name = bytes();
        const auto grid = unsigned(number()), threads = unsigned(number());
        std::vector<std::vector<char>> arguments(number());
        for (auto& argument : arguments) {
            if (const uint64_t buffer = number()) {
                char* at = buffers[buffer - 1].data() + number();
                argument.assign(reinterpret_cast<char*>(&at), reinterpret_cast<char*>(&at) + sizeof at);
            } else argument = bytes();
        }
        std::vector<void*> addresses;
        for (auto& argument : arguments) addresses.push_back(argument.data());
        emu::run(kernels().at(std::string(name.begin(), name.end())), grid, threads, addresses.data());
    }
    std::ofstream out(files[2], std::ios::binary);
    for (const auto& buffer : buffers) out.write(buffer.data(), std::streamsize(buffer.size()));
}
