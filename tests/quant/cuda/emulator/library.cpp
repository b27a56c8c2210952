// A kernel source as a shared library. KERNELS names a generated file with the source's #include and `kernels()`.
#include KERNELS
extern "C" int run(const char* name, unsigned grid, unsigned threads, void** arguments, unsigned workers,
                   unsigned long long first, unsigned long long count) {
    const auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    emu::run(found->second, grid, threads, arguments, workers, first, count);
    return 0;
}
