/* Loaded before MKL (LD_PRELOAD), this answers its question whether the processor is Intel's with yes,
   so that MKL takes its AVX-512 path on every processor that has AVX-512. */
int mkl_serv_intel_cpu_true(void) { return 1; }
int mkl_serv_intel_cpu(void) { return 1; }
