#!/bin/bash
# Mistakes put into copies of the row kernels, one at a time: each must be caught by the test named.
# Usage: mutate_rows.sh BUILD, after the tests were built there (`make B=BUILD unit`).
# Not a part of the suite: it compiles kernels for each mistake.
set -u
cd "$(dirname "$0")/../../.."
B=${1:-build/release}
D=$(mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
FLAGS="-x c++ -std=c++17 -D_GNU_SOURCE -O1 -fPIC -ffp-contract=off -fno-math-errno"
EMU=$(ls "$B"/kernels/cuda/emu/*.o | grep -v race)
ALL="gemm gemm_skinny weight norm embed elementwise"
missed=0 n=0

# compile FILE...: of the copy.
compile() {
    for f in "$@"; do
        g++ $FLAGS -I"$D/t" -I. -Ikernels/cuda/emu/shim -c "$D/t/kernels/cuda/$f.cu" -o "$D/$f.o" || exit 1
    done
}
copy() {
    rm -rf "$D/t" && mkdir -p "$D/t/kernels/cuda"
    for f in $ALL; do cp "kernels/cuda/$f.cu" "$D/t/kernels/cuda/"; done
    cp kernels/cuda/gemm.cuh kernels/cuda/weight.cuh kernels/cuda/portable_mma.cuh "$D/t/kernels/cuda/"
}

# mistake TEST FILE SED WHY: the sed program must change the file.
mistake() {
    n=$((n + 1))
    copy
    sed -i -e "$3" "$D/t/kernels/cuda/$2"
    if cmp -s "$D/t/kernels/cuda/$2" "kernels/cuda/$2"; then
        echo "stale   $4"
        missed=$((missed + 1))
        return
    fi
    case $2 in
    weight.cuh) changed="gemm gemm_skinny weight embed elementwise" ;;
    gemm.cuh | portable_mma.cuh) changed="gemm gemm_skinny" ;;
    *) changed=${2%.cu} ;;
    esac
    compile $changed
    g++ "$B/tests/kernels/cuda/test_$1.o" $(for f in $ALL; do echo "$D/$f.o"; done) $EMU \
        ${LIBS:-"$B/libtest.a" "$B/libsp.a"} -lcunit ${LDLIBS:--lhwloc -lcjson} -lpthread -ldl -lm -o "$D/test" || exit 1
    if timeout 120 "$D/test" >"$D/out" 2>&1; then
        echo "MISSED  $4"
        missed=$((missed + 1))
    else
        echo "caught  $4"
    fi
    copy
    compile $changed
}

copy
compile $ALL
mistake gemm weight.cuh 's/lane \* 8 + i % 16 \/ 8 \* 4/lane * 8 + i % 16 \/ 8 * 2/;s/j % 16 \/ 8 \* 2 + j % 2/j % 16 \/ 8 * 4 + j % 2/' 'halves of a piece exchanged'
mistake gemm weight.cuh 's/v = level\[j\] + v;/v = level[0] + v;/' 'a tree that adds the wrong level'
mistake gemm gemm.cuh 's/row < T \&\& k < end/row < T/' 'x read beyond its segment'
mistake gemm gemm.cuh 's/row < T \&\& k < end/row <= T \&\& k < end/' 'a row too many'
mistake gemm gemm.cuh 's/i % 2 \* 8, at = c + i \/ 2 \* 8/i \/ 2 * 8, at = c + i % 2 * 8/' 'quarters of A exchanged'
mistake gemm gemm.cuh 's/term < (HALF ? 3 : 2)/term < 1/' 'the second term of x left out'
mistake gemm gemm.cuh 's/term < (HALF ? 3 : 2)/term < 2/' 'f16: the second term of the weight left out'
mistake gemm gemm.cuh 's/term == 1 ? x.lo : x.hi/term != 1 ? x.lo : x.hi/' 'the second term of x before the first'
mistake gemm gemm.cuh 's/__fsub_rn(a, __uint_as_float(hi << 16))/a/' 'f16: the second term of the weight from the whole of it'
mistake gemm portable_mma.cuh 's/__fsub_rn(x, __bfloat162float(__ushort_as_bfloat16(h)))/x/' 'the second term of x from the whole of it'
mistake gemm portable_mma.cuh 's/__float2bfloat16_rn(x))/__float2bfloat16_rn(x * 1.004f))/' 'the first term of x not the nearest'
mistake gemm portable_mma.cuh 's/if (finite \&\& (h \& 0x7fff) == 0x7f80) h--;//' 'the largest activations made infinite'
mistake gemm portable_mma.cuh 's/^    if (finite)$/    if (true)/' 'an infinity with a second term'
mistake gemm gemm.cu 's/to\[32\] = t.lo/to[32] = t.hi/' 'the first term packed twice'
mistake gemm gemm.cu 's/from.hi\[lane\], from.lo\[lane\]/from.lo[lane], from.hi[lane]/' 'terms in another order where rows are many'
mistake gemm weight.cuh 's/k16) \* 64/k16) * 32/' 'terms packed over one another'
mistake gemm gemm.cuh 's/g + e \/ 2 \* 8/g + e % 2 * 8/' 'a wrong lane laid down'
mistake gemm gemm.cu 's/    __syncthreads();$/    ;/' 'partial sums read too early'
mistake gemm gemm.cu 's/cu_cp_async_wait<STAGES - 2>()/cu_cp_async_wait<STAGES - 1>()/' 'a copy not waited for'
mistake gemm gemm.cu 's/__syncthreads(); \/\* stage .at. has come.*$/;/' 'a stage read before all copied it'
mistake gemm gemm.cu 's/next % STAGES\], x/at % STAGES], x/' 'the wrong stage filled'
mistake gemm gemm.cu 's/, m_tiles - 1)/, m_tiles)/' 'rows beyond the packed ones fetched'
mistake gemm gemm.cu 's/acc\[i\] = w.sum\[j\]\[i\] + acc\[i\]/acc[i] = w.sum[0][i] + acc[i]/' 'sums of segments joined wrongly'
mistake gemm gemm.cu 's/at < cuts.tile\[s + 1\] \* 2/at < cuts.tile[s + 1] * 2 - 1/' 'the last stage of a segment counted for the next'
mistake gemm gemm.cu 's/kk < n; kk++/kk < WIDE_K; kk++/' 'f32: padding added'
mistake gemm gemm.cu 's/kk < n; kk++/kk < WIDE_K; kk++/;s/, cuts.edge\[s + 1\]);/, cuts.edge[cuts.n]);/' 'f32: x beyond the segment'
mistake gemm gemm.cu 's/            __syncthreads();$/;/' 'f32: tiles used before they are whole'
mistake gemm gemm.cu 's/row >= T || col >= N/row >= T || col > N/' 'an output too many'
mistake gemm gemm_skinny.cu 's/m < CU_FEW_WARPS; m++/m < CU_FEW_WARPS - 1; m++/' 'a warp left out'
mistake gemm gemm_skinny.cu 's/    __syncthreads();$/    ;/' 'warps added before they are done'
mistake gemm gemm_skinny.cu 's/- k0, CU_GEMM_TILE_K)/- k0, CU_GEMM_TILE_K - 1)/' 'f32: the last k of a tile left out'
mistake embed weight.cu 's/row0 + r, at/r, at/' 'rows packed at the wrong place'
mistake gemm weight.cuh 's/c.tile\[s\] \* CU_GEMM_TILE_K + (k - c.edge\[s\])/k/' 'segments not padded'
mistake embed embed.cu 's/(uint32_t)ids\[t\] >= (uint32_t)rows/ids[t] >= rows/' 'negative ids not seen'
mistake embed embed.cu 's/ || fault->code != 0//' 'the last fault wins'
mistake embed embed.cu 's/ \&\& t < first//' 'not the first row of a thread'
mistake norm norm.cu 's/__syncthreads(); \/\* the chunk is filled again \*\//;/' 'a chunk filled while it is read'
mistake norm norm.cu 's/^        __syncthreads();$/        ;/' 'a chunk read before it is whole'
mistake norm norm.cu 's/^    __syncthreads();$/    ;/' 'the scale read too early'
mistake norm norm.cu 's/cu_warp_sum<SP_LANES>/cu_warp_sum<8>/' 'half of the lanes'
mistake norm norm.cu 's/cu_warp_sum<SP_LANES>(lane)/cu_warp_sum<32>(tid < 16 ? 0.0f : lane)/' 'the wrong half of the warp'
mistake norm norm.cu 's/__fmul_rn(__fmul_rn(xr\[i\], by), weight\[i\])/__fmul_rn(xr[i], __fmul_rn(by, weight[i]))/' 'factors in another order'
mistake elementwise elementwise.cu 's/rows\[blockIdx.x\]/blockIdx.x/' 'rows not looked up'
mistake elementwise elementwise.cu 's/i < F; i += column_step()/i <= F; i += column_step()/' 'a column too many'
mistake elementwise elementwise.cu 's/cu_tree_push(level, m, leaf\[m\])/cu_tree_push(level, m ^ 1, leaf[m ^ 1])/' 'members in another order'
mistake elementwise weight.cuh 's/first ? level\[j\] : level\[j\] + v/level[j] + v/' 'missing members added as zero'
echo "$((n - missed)) of $n mistakes caught"
[ "$missed" = 0 ]
