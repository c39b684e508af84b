#ifndef SSMN_CLONES_H
#define SSMN_CLONES_H

// A function marked SSMN_CLONES is compiled, with all that it calls, once per instruction set; the loader picks the
// best one that the processor has. CMakeLists.txt defines SSMN_HAS_CLONES where compiler and platform can do that.
#if defined(SSMN_HAS_CLONES)
#define SSMN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), flatten))
#else
#define SSMN_CLONES
#endif

#endif
