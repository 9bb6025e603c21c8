/* launcher/bench_gpu.h - `superpod bench gpu`: what a GPU gives, and how near the kernels come to it.
 *
 * Three things, in this order: ceilings that are measured here and now (a large copy, the largest
 * product, the smallest launch); every operation of a forward pass at a model's shapes, with the
 * floor that its bytes and operations have under those ceilings; whole decode steps of the model.
 * The ceiling of products is this backend's own, so a ratio near 1 says that a shape is as good as
 * the best shape, not that the card can do no more.
 *
 * Thread: main. */
#pragma once

/** `argv[0]` is the word "gpu". Exit code: 0, 2 wrong command line, 10 no such device, or what it
 * refused. */
int sp_bench_gpu(int argc, char **argv);
