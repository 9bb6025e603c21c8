#!/bin/bash
# Mistakes put into copies of attend and rope, one at a time: each must be caught by test_attend or
# test_rope. Usage: mutate_attend.sh BUILD, after the tests were built there (`make B=BUILD unit`).
# Not a part of the suite: it compiles a kernel for each mistake.
set -u
cd "$(dirname "$0")/../../.."
B=${1:-build/release}
D=$(mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
FLAGS="-x c++ -std=c++17 -D_GNU_SOURCE -O2 -fPIC -ffp-contract=off -fno-math-errno"
EMU=$(ls "$B"/kernels/cuda/emu/*.o | grep -v race)
missed=0 n=0

# mistake TEST FILE SED WHY: the sed program must change the file.
mistake() {
    n=$((n + 1))
    rm -rf "$D/t" && mkdir -p "$D/t/kernels/cuda"
    cp kernels/cuda/attend* kernels/cuda/portable_mma.cuh kernels/cuda/rope.cu "$D/t/kernels/cuda/"
    sed -i -e "$3" "$D/t/kernels/cuda/$2"
    if cmp -s "$D/t/kernels/cuda/$2" "kernels/cuda/$2"; then
        echo "stale   $4"
        missed=$((missed + 1))
        return
    fi
    for f in attend rope; do
        g++ $FLAGS -I"$D/t" -I. -Ikernels/cuda/emu/shim -c "$D/t/kernels/cuda/$f.cu" -o "$D/$f.o" || exit 1
    done
    g++ "$B/tests/kernels/cuda/test_$1.o" "$D/attend.o" "$D/rope.o" $EMU ${LIBS:-"$B/libtest.a" "$B/libsp.a"} \
        -lcunit ${LDLIBS:--lhwloc -lcjson} -lpthread -ldl -lm -o "$D/test" || exit 1
    if SUPERPOD_EMU_ORDER=${ORDER:-random} timeout 120 "$D/test" >"$D/out" 2>&1; then
        echo "MISSED  $4"
        missed=$((missed + 1))
    else
        echo "caught  $4"
    fi
}

mistake attend attend_rows.cuh 's/max(a.rows.pos\[t\] + 1, 0)/max(a.rows.pos[t], 0)/' 'a row does not see itself'
mistake attend attend_rows.cuh 's/s.hi > a.window) s.lo = s.hi - a.window/s.hi > a.window) s.lo = s.hi - a.window + 1/' 'a window short by one'
mistake attend attend_rows.cuh 's/ || a.rows.table\[t\] != a.rows.table\[t - 1\]//' 'tiles of two sequences'
# A missing __syncwarp() is found by the race build alone: the sums of a warp order its threads here.
mistake attend attend_soft.cuh 's/v\[i\] > m) m = v\[i\]/v[i] < m) m = v[i]/' 'the smallest score subtracted'
mistake attend attend_soft.cuh 's/cu_warp_sum<SP_LANES>(l)/cu_warp_sum<8>(l)/' 'half of the lanes summed'
mistake attend attend_rows.cuh 's/s.lo \/ SP_ATTN_SPLIT == split/split == 0/' 'the first split is not always number 0'
mistake attend attend_mma.cuh 's/__syncthreads(); \/\* the stage is filled again \*\///' 'a stage filled while it is read'
mistake attend attend_mma.cuh 's/cu_cp_async_wait<1>()/cu_cp_async_wait<2>()/' 'a copy not waited for'
mistake attend attend_mma.cuh 's/if (pos >= w.seen.lo \&\& pos < w.seen.hi)/if (pos >= 0)/' 'stale rows of the cache read'
mistake attend attend_mma.cuh 's/lane \/ 8 % 2 \* 8 + lane % 8) \* stride/lane % 16) * stride + 0/;s/quarter \* 16 + lane \/ 16 \* 8/quarter * 16 + lane \/ 8 % 2 * 8/' 'a wrong lane of K'
mistake attend attend_mma.cuh 's/== r) d\[i\] = got\[i\]/<= r) d[i] = got[i]/' 'a strict product of the wrong row'
mistake attend attend_mma.cuh 's/return __syncthreads_or(bad) != 0/return __syncthreads_or(bad) > 1/' 'V that is not finite unseen'
mistake attend attend_mma.cuh 's/term = i % 2;/term = 0;/' 'the first term of q twice'
mistake attend attend_mma.cuh 's/term = i % 2;/term = 1 - i % 2;/' 'the second term of q before the first'
mistake attend attend_mma.cuh 's/int term = 0; term < 2; term++/int term = 0; term < 1; term++/' 'the second term of P left out'
mistake attend attend_mma.cuh 's/stride, j, term, lo, strict/stride, j, 1 - term, lo, strict/' 'the second term of P before the first'
mistake attend attend_mma.cuh 's/mma_strict(d, x\[i \/ 2\]/if (!term) mma_strict(d, x[i \/ 2]/' 'a strict product without the second term'
mistake attend portable_mma.cuh 's/__fsub_rn(x, __half2float(__ushort_as_half(h)))/x/' 'f16: the second term from the whole'
mistake attend attend_fma.cuh 's/if (pos < z.span\[r\].lo || pos >= z.span\[r\].hi) continue;//' 'f32: P of 0 multiplied'
mistake attend attend_fma.cuh 's/__syncthreads(); \/\* scores and factors are written again \*\///' 'f32: scores written too early'
mistake attend attend.cu 's/i = first + 1; i < end/i = first + 1; i < end - 1/' 'the last split left out'
mistake attend attend.cu 's/const int32_t first = s.lo \/ SP_ATTN_SPLIT,/const int32_t first = 0,/' 'a split that no window reaches'
mistake rope rope.cu 's/-__fmul_rn(y, s)/__fmul_rn(y, s)/' 'turned the wrong way'
mistake rope rope.cu 's/if (i < K \* D) store/if (i <= K * D) store/' 'one value too many'
mistake rope rope.cu 's/2 \* a.pairs + i % a.tail/a.pairs + i % a.tail/' 'the tail of k at the wrong place'
mistake rope attend_rows.cuh 's/row \* kv.row_bytes + (value/row * kv.row_bytes + (!value/' 'k and v exchanged'
echo "$((n - missed)) of $n mistakes caught"
[ "$missed" = 0 ]
