#!/bin/bash
# Mistakes put into copies of what mode fast is made of, one at a time: test_fast must catch each.
# Usage: mutate_fast.sh BUILD, after the tests were built there (`make B=BUILD unit`).
# Not a part of the suite: it compiles for each mistake.
set -u
cd "$(dirname "$0")/../../.."
B=${1:-build/release}
D=$(mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
COMMON="-D_GNU_SOURCE -O1 -fPIC -ffp-contract=off -fno-math-errno -I$D/t -I. -Ikernels/cuda/emu/shim"
missed=0 n=0

objects=("$B"/tests/kernels/cuda/{test_fast,emu_cublaslt}.o "$B"/comm/group_nccl.emu.o)
for f in kernels/cuda/*.cu kernels/cuda/*.c; do objects+=("$B/${f%.*}.emu.o"); done
for f in kernels/cuda/emu/*.cc; do
    case $f in */race.cc) ;; *) objects+=("$B/${f%.cc}.o") ;; esac
done

compile() { # path
    case $1 in
    *.c) gcc -std=gnu11 $COMMON -c "$D/t/$1" -o "$D/changed.o" ;;
    *.cu) g++ -x c++ -std=c++17 $COMMON -fsanitize=alignment,bounds -fsanitize-undefined-trap-on-error \
        -c "$D/t/$1" -o "$D/changed.o" ;;
    *) g++ -x c++ -std=c++17 $COMMON -c "$D/t/$1" -o "$D/changed.o" ;;
    esac
}

# mistake FILE SED WHY: the sed program must change the file.
mistake() {
    local path=kernels/cuda/$1 old
    n=$((n + 1))
    rm -rf "$D/t" && mkdir -p "$D/t/$(dirname "$path")"
    sed -e "$2" "$path" >"$D/t/$path"
    if cmp -s "$D/t/$path" "$path"; then
        echo "stale   $3"
        missed=$((missed + 1))
        return
    fi
    compile "$path" || exit 1
    old=$B/${path%.*}.emu.o
    [ "${path##*.}" != cc ] || old=$B/${path%.cc}.o
    g++ -rdynamic $(printf '%s\n' "${objects[@]}" | grep -vxF "$old") "$D/changed.o" \
        "$B/libtest.a" "$B/libsp.a" ${LIBS:-$(pkg-config --libs libcjson libpcre2-8 libutf8proc libevent libevent_pthreads yaml-0.1 hwloc 2>/dev/null)} \
        -lcunit -lpthread -ldl -lm -o "$D/test" || exit 1
    if timeout 120 "$D/test" >"$D/out" 2>&1; then
        echo "MISSED  $3"
        missed=$((missed + 1))
    else
        echo "caught  $3"
    fi
}

mistake fast.cu 's/k + 4 <= K) return/k + 3 <= K) return/' 'a value beyond K read'
mistake fast.cu 's/if (row >= T) return v;/if (row > T) return v;/' 'a row too many'
mistake fast.cu 's/(uintptr_t)x % 16 == 0 \&\& ldx % 4 == 0/ldx % 4 == 0/' 'quads at any address'
mistake fast.cu 's/(uintptr_t)x % 16 == 0 \&\& ldx % 4 == 0/(uintptr_t)x % 16 == 0/' 'quads at any stride'
mistake fast.cu 's/ \/ 4 \* 4 + t;$/ \/ 4 * 4;/' 'all lanes of four read the same k'
mistake fast.cu 's/t \* 8 + i % 2 \* 4/t * 4 + i % 2 * 16/' 'k of x in another order than that of w'
mistake fast.cu 's/i % 2 ? v.z : v.x, i % 2 ? v.w : v.y/i % 2 ? v.y : v.x, i % 2 ? v.w : v.z/' 'halves of B exchanged'
mistake fast.cu 's/+ g, N - 1);/+ g, N);/' 'an output beyond the weight read'
mistake fast.cu 's/at < ld16 ? /at <= ld16 ? /' 'a piece beyond a row read'
mistake fast.cu 's/g + i % 4 \/ 2 \* 8/g + i % 2 * 8/' 'a wrong lane laid down'
mistake fast.cu 's/    __syncthreads();$/    ;/' 'warps added before they are done'
mistake fast.cu 's/m < WARPS; m++/m < WARPS - 1; m++/' 'a warp left out'
mistake fast.cu 's/n0 + col >= N) continue/n0 + col > N) continue/' 'an output too many'
mistake fast.cu 's/k < ld; k += 128/k < ld - 4; k += 128/' 'f32: the last k left out'
mistake fast.cu 's/r < T \&\& n0 + n < N/n0 + n < N/' 'f32: rows beyond T written'
mistake fast.cu 's/i \* 8 + 4, K, quads/i * 8 + 3, K, quads/' 'x rounded at the wrong place'
mistake fast.cu 's/i < ld16;$/i < K \/ 8;/' 'padding of x left as it was'
mistake fast.cu 's/HALF ? cu_pack_f16(low, high) : cu_pack_bf16(low, high)/cu_pack_bf16(low, high)/' 'f16 rounded as bf16'
mistake embed.cu 's/(int64_t)id \* ld + k$/(int64_t)id * cols + k/' 'rows of the embedding without their gap'
mistake cuda_memory.c 's/(size_t)row0 \* pitch/(size_t)row0 * row_bytes/' 'parts of a weight packed without their gap'
mistake cuda_memory.c 's/s->fast ? CU_LT_WORKSPACE : 0/0/' 'the workspace not told to the plan'
mistake cuda_fast.c 's/step \* 8 < T/step * 4 < T/' 'two buckets an octave'
mistake cuda_fast.c 's/if (c) return c;//' 'algorithms asked for each time'
mistake cuda_fast.c 's/if (describe(lt, p, p->T) == CU_LT_OK \&\& fits(lt, c)) return c;/if (fits(lt, c)) return c;/' 'the shape of the bucket kept'
mistake cuda_fast.c 's/whole < 2; whole++/whole < 1; whole++/' 'no algorithm of its own where the kept one does not fit'
mistake cuda_fast.c 's/if (lt->n_choices < CHOICES_MAX)/if (lt->n_choices < CHOICES_MAX + 2000)/;s/sp_try_alloc_array(CHOICES_MAX/sp_try_alloc_array(CHOICES_MAX + 2000/' 'a table without an end'
mistake cuda_fast.c 's/\.align_y = alignment_of(p->y)/.align_y = 256/' 'y believed to be aligned'
mistake cuda_fast.c 's/\(ALIGN_[CD]\), \&k->align_y/\1, \&k->align_x/' 'the alignment of y told as that of x'
mistake cuda_fast.c 's/p->ldx = wide ? x.stride : p->w->ld;/p->ldx = wide ? x.cols : p->w->ld;/' 'f32: rows of x without their gap'
mistake cuda_fast.c 's/const uint32_t epilogue = p->bias ? /const uint32_t epilogue = !p->bias ? /' 'the bias where there is none'
mistake cuda_fast.c 's/(size_t)t \* (size_t)y.stride/(size_t)t * (size_t)y.cols/' 'groups of rows without the gap of y'
mistake cuda_fast.c 's/    cu_mem_drop(lt->workspace);//' 'the workspace never given back'
mistake emu/cublaslt.cc 's/if (j.bias) v +=/if (0) v +=/;s/if (j->bias) v +=/if (0) v +=/' 'emulator: no bias'
mistake emu/cublaslt.cc 's/if (j->workspace_bytes) memset/if (0) memset/' 'emulator: the workspace left alone'
mistake emu/cublaslt.cc 's/if (!touch_all(j, \&err)) return err;//' 'emulator: buffers not looked at'
echo "$((n - missed)) of $n mistakes caught"
[ "$missed" = 0 ]
