// A level table as what is read back needs it: the edges alone, up to 1 KiB, taken by value.
#pragma once

template <int BITS> struct Edges { float edge[1 << BITS]; };
