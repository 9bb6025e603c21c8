#!/bin/bash
# Mistakes put into copies of the kernels of a draw, one at a time: each must be caught by test_draw.
# Usage: mutate_draw.sh BUILD, after the tests were built there (`make B=BUILD unit`).
# Not a part of the suite: it compiles kernels for each mistake.
set -u
cd "$(dirname "$0")/../../.."
B=${1:-build/release}
D=$(mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
FLAGS="-x c++ -std=c++17 -D_GNU_SOURCE -O1 -fPIC -ffp-contract=off -fno-math-errno"
OTHERS="$(ls "$B"/kernels/cuda/*.emu.o | grep -v /draw.emu.o) $B/comm/group_nccl.emu.o"
EMU=$(ls "$B"/kernels/cuda/emu/*.o | grep -v race)
LIBS=$(pkg-config --libs libcjson libpcre2-8 libutf8proc hwloc yaml-0.1 libevent openssl libxxhash)
missed=0 n=0

# mistake FILE SED WHY: the sed program must change the file.
mistake() {
    n=$((n + 1))
    rm -rf "$D/t" && mkdir -p "$D/t/kernels/cuda"
    cp kernels/cuda/draw.cu kernels/cuda/draw_*.cuh "$D/t/kernels/cuda/"
    sed -i -e "$2" "$D/t/kernels/cuda/$1"
    if cmp -s "$D/t/kernels/cuda/$1" "kernels/cuda/$1"; then
        echo "stale   $3"
        missed=$((missed + 1))
        return
    fi
    g++ $FLAGS -I"$D/t" -I. -Ikernels/cuda/emu/shim -c "$D/t/kernels/cuda/draw.cu" -o "$D/draw.o" || exit 1
    g++ -rdynamic "$B/tests/kernels/cuda/test_draw.o" "$D/draw.o" $OTHERS $EMU "$B/libtest.a" "$B/libsp.a" \
        $LIBS ${LDLIBS:-} -lcunit -lpthread -ldl -lm -o "$D/test" || exit 1
    if timeout 60 "$D/test" >"$D/out" 2>&1; then
        echo "MISSED  $3"
        missed=$((missed + 1))
    else
        echo "caught  $3"
    fi
}

mistake draw_row.cuh 's/(uint32_t)~id)/(uint32_t)id)/;s/(int32_t)~(uint32_t)place/(int32_t)(uint32_t)place/' 'ties go to the highest id'
mistake draw_row.cuh 's/__fadd_rn(x, 0.0f)/x/' 'zeros of two signs are two logits'
mistake draw_row.cuh 's/id <= c.id/id < c.id/' 'the last survivor left out'
mistake draw_row.cuh 's/(int64_t)part \* V \/ DRAW_PARTS/part * (V \/ DRAW_PARTS)/' 'the rest of the vocabulary forgotten'
mistake draw.cu 's/if (!(x > s->max)) return;/if (x < s->max) return;/' 'the last of equal maxima'
mistake draw.cu 's/    s->bad |= x != x;//' 'a NaN not seen'
mistake draw.cu 's/    if (c.raw_max == INFINITY) return c;//' 'an infinite logit taken for sound'
mistake draw.cu 's/y\[k\] == x \&\& i < id/y[k] == x \&\& i <= id/' 'a rank counts itself'
mistake draw.cu 's/p\[i\].top\[k\] > place/p[i].top[k] >= place/' 'most likely tokens one place too low'
mistake draw.cu 's/__fsub_rn(__fsub_rn(raw\[id\], max), log_sum)/__fsub_rn(raw[id], __fadd_rn(max, log_sum))/' 'a logprob rounded elsewhere'
mistake draw.cu 's/__fadd_rn(__fadd_rn(p\[0\].mass, p\[1\].mass), __fadd_rn(p\[2\].mass, p\[3\].mass))/__fadd_rn(__fadd_rn(__fadd_rn(p[0].mass, p[1].mass), p[2].mass), p[3].mass)/' 'segments added one after the other'
mistake draw.cu 's/j.draws = a->draws + from/j.draws = a->draws/' 'the first rows drawn again'
mistake draw_edit.cuh 's/    __syncthreads(); \/\* counts are whole \*\///' 'a penalty from a count that is not whole'
mistake draw_edit.cuh 's/        if (count \& DRAW_PENALISED) continue;//' 'a penalty for every mention'
mistake draw_edit.cuh 's/id >= s.from \&\& id < s.to/id >= s.from \&\& id <= s.to/' 'an id of the next segment edited'
mistake draw_edit.cuh 's/count > 0) x = __fsub_rn/count > 1) x = __fsub_rn/' 'presence counted from the second'
mistake draw_edit.cuh 's/draw_penalise_ids(s, d, prompt, n_prompt);//' 'the prompt not penalised'
mistake draw_edit.cuh 's/v > DRAW_BIAS_MAX ? DRAW_BIAS_MAX/v > DRAW_BIAS_MAX ? v/' 'a bias without a bound'
mistake draw_filter.cuh 's/        __syncthreads();$/;/' 'a chunk or bins read before they are whole'
mistake draw_filter.cuh 's/__syncthreads(); \/\* the chunk is filled again \*\//;/' 'a chunk filled while it is read'
mistake draw_filter.cuh 's/k += SP_LANES)/k += 8)/' 'lanes that overlap'
mistake draw_filter.cuh 's/^    if (tid == 0) s->rank = k;/    if (tid == 0) s->rank = k + 1;/' 'the k-th largest is the one after it'
mistake draw_filter.cuh 's/shift == 10 ? 10 : 11/11/' 'the last bits not looked at'
mistake draw_filter.cuh 's/key >> (shift + width) != found/false/' 'elements of other bins counted'
mistake draw_filter.cuh 's/key <= bound.key/key < bound.key/' 'a tie counted twice'
mistake draw_filter.cuh 's/(a \& run) == 0/(k \& run) == 0/' 'a sort that turns in the wrong place'
mistake draw_filter.cuh 's/^            __syncthreads();$/            ;/' 'a sort without barriers'
mistake draw_filter.cuh 's/if (before < wanted) continue;/if (before <= wanted) continue;/' 'a token more when the sum is reached'
mistake draw_filter.cuh 's/of.below = bound.key;/of.below = bound.key - 1;/' 'a key between two pieces forgotten'
mistake draw_filter.cuh 's/        s->need = i;/        s->need = i + 1;/' 'a tie cut one too late'
mistake draw_filter.cuh 's/(double)f < x ? draw_float_above(f) : f/f/' 'a bound of min_p rounded down'
mistake draw_filter.cuh 's/(double)d->top_p \* (double)total/d->top_p * total/' 'the wanted mass in f32'
mistake draw_pick.cuh 's/c0 = (uint32_t)d->choice, c1 = (uint32_t)d->position/c1 = (uint32_t)d->choice, c0 = (uint32_t)d->position/' 'counter words exchanged'
mistake draw_pick.cuh 's/k0 = (uint32_t)d->seed, k1 = (uint32_t)(d->seed >> 32)/k1 = (uint32_t)d->seed, k0 = (uint32_t)(d->seed >> 32)/' 'key words exchanged'
mistake draw_pick.cuh 's/round < 10/round < 9/' 'a round of Philox left out'
mistake draw_pick.cuh 's/(double)word + 0.5/(double)word + 1.0/' 'the middle of an interval missed'
mistake draw_pick.cuh 's/(n + 1) \* DRAW_LN2_ABOVE/n * DRAW_LN2_ABOVE * 0.5/' 'a bound that rules out winners'
mistake draw_pick.cuh 's/ \&\& mine == most ?/ ?/' 'the lowest id of all'
mistake draw_pick.cuh 's/first == mine) mine/first != mine) mine/' 'the wrong thread looks for its next token'
echo "$((n - missed)) of $n mistakes caught"
[ "$missed" = 0 ]
