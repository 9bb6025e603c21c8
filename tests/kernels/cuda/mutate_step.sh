#!/bin/bash
# Mistakes put into copies of what records steps and runs ahead, one at a time: each must be caught by
# the test named. Usage: mutate_step.sh BUILD, after the tests were built there (`make B=BUILD unit`).
# Not a part of the suite: it compiles and links for each mistake.
set -u
cd "$(dirname "$0")/../../.."
B=${1:-build/release}
D=$(mktemp -d) || exit 1
trap 'rm -rf "$D"' EXIT
EMU=$(ls "$B"/kernels/cuda/emu/*.o | grep -v race)
missed=0 n=0

# mistake TEST FILE SED WHY: the sed program must change the file.
mistake() {
    n=$((n + 1))
    rm -rf "$D/t" && mkdir -p "$D/t/$(dirname "$2")"
    sed -e "$3" "$2" >"$D/t/$2"
    if cmp -s "$D/t/$2" "$2"; then
        echo "stale   $4"
        missed=$((missed + 1))
        return
    fi
    local flags="-D_GNU_SOURCE -O1 -fPIC -ffp-contract=off -I$D/t -I. -Ikernels/cuda/emu/shim" device=
    case $2 in
    *.cu) g++ -x c++ -std=c++17 $flags -c "$D/t/$2" -o "$D/mine.o" || exit 1 ;;
    *) gcc -std=gnu11 $flags -c "$D/t/$2" -o "$D/mine.o" || exit 1 ;;
    esac
    case $1 in *forward* | */cuda/*)
        device="$(ls "$B"/kernels/cuda/*.emu.o "$B"/comm/group_nccl*.emu.o | grep -v "/$(basename "${2%.*}").emu.o") $EMU"
        ;;
    esac
    g++ -rdynamic "$B/tests/$1.o" "$D/mine.o" $device "$B/libtest.a" "$B/libsp.a" -lcunit \
        ${LIBS:-$(pkg-config --libs libcjson libpcre2-8 libutf8proc libevent hwloc openssl 2>/dev/null)} \
        -lpthread -ldl -lm -o "$D/test" || exit 1
    if timeout 120 "$D/test" >"$D/out" 2>&1; then
        echo "MISSED  $4"
        missed=$((missed + 1))
    else
        echo "caught  $4"
    fi
}

G=kernels/cuda/cuda_graph.c A=runtime/engine/stage_ahead.c
F=runtime/model/test_forward_ahead S=runtime/engine/test_stage_ahead
mistake $F $G 's/pos\[i\] = -1;/pos[i] = 0;/' 'rows that fill a bucket write to a sequence'
mistake $F $G 's/while (p <= max_pos)/while (p < max_pos)/' 'a grid one position too short'
mistake $F $G 's/cu_graphs_drop(cu);$/;/;s/while (b < n) b \*= 2;/while (2 * b < n) b *= 2;/' 'a bucket smaller than its step'
mistake $F $G 's/x->owner == owner && //' 'a graph of other buffers'
mistake $F $G 's/if (x->used < oldest->used)/if (x->used > oldest->used)/' 'the newest graph dropped'
mistake $F $G 's/        x->plain = true;/        return true;/' 'a failed recording taken for a step'
mistake $F $G 's/table\[i\] = at;$/table[i] = 0;/' 'every sequence has the first one'"'"'s blocks'
mistake $F $G 's/row\[i\] = i;/row[i] = 0;/' 'logits of the first row for everyone'
mistake $F kernels/cuda/cuda_dev.c 's/    cu_graphs_drop(dev->impl);//' 'graphs outlive the memory in them'
mistake $F kernels/cuda/cuda_step.c 's/s->follows && before->ticket/before->ticket/' 'a rest counted as idleness'
mistake $F kernels/cuda/cuda_step.c 's/    if (cu->graphs.now) return cu_graph_data(cu, src, bytes);//' 'ids of one step in the graph of all'
mistake $F runtime/model/forward_ahead.c 's/draw(s, draws, a->results + at \* slots_of(s))/draw(s, draws, a->results)/' 'one place for two results'
mistake $F runtime/model/forward_ahead.c 's/wait_for(s, a->tickets\[at\], /wait_for(s, a->tickets[at] > 1 ? a->tickets[at] - 1 : 1, /' 'results read a step too early'
W=runtime/model/test_forward_ahead_tp
mistake $W runtime/model/forward_ahead.c 's/^        share_last(s);/        if (s->config.part.tp_rank > 64) share_last(s);/' 'tokens that the other ranks are not given'
mistake $W runtime/model/forward_ahead.c 's/    sp_tp_sum(s, s->x, b->n_tokens);//' 'rows of other ranks left out'
mistake $W runtime/model/forward_ahead.c 's/if (!has_fed(b)) return false;/if (p->tp_rank > 0 \&\& !has_fed(b)) return false;/' 'ranks that embed in two ways'
mistake $W runtime/model/forward_ahead.c 's/SP_TRY(ask_group(s, st == SP_OK, err));//' 'a group that nobody asks'
mistake kernels/cuda/test_embed kernels/cuda/embed.cu 's/known ? -0.0f/known ? 0.0f/' '0 for the rows of others'
mistake kernels/cuda/test_embed kernels/cuda/embed.cu 's/slot < from.n_last/slot <= from.n_last/' 'a slot too many of an embedding'
mistake $S runtime/engine/stage_step.c 's/q->there < e->start + e->n)/q->n_here < e->start + e->n)/' 'ranks that name what they have not heard of'
mistake $S $A 's/q->there = q->n_known++/q->n_known++/' 'what the device drew is looked for on the host'
mistake kernels/cuda/test_feed kernels/cuda/feed.cu 's/ids\[t\] >= 0) return/ids[t] > 0) return/' 'id 0 looked up'
mistake kernels/cuda/test_feed kernels/cuda/feed.cu 's/slot < n_last/slot <= n_last/' 'a slot too many'
mistake kernels/cuda/test_feed kernels/cuda/feed.cu 's/blockIdx.x \* THREADS + //' 'only the first block'"'"'s ids'
mistake $S $A 's/all->history |= .*$/;/' 'a penalty that does not see the last token'
mistake $S $A 's/    if (sp_stage_wanted_of(q, e).n > 0) all->logits = true;//' 'logits of another step told'
mistake $S $A 's/} else if (value == -INFINITY) {/} else {/' 'a bias that lifts a ban'
mistake $S $A 's/    for (int32_t i = d->bias0; i < a->n_bias; i++) a->place.*$//' 'places of one draw left for the next'
mistake $S $A 's/twice = s->ahead.place\[p->logit_bias\[i\].id\]++ > 0 || twice;/;/' 'one of two biases lost'
mistake $S $A 's/\.position = q->n_known,/.position = q->n_here,/' 'the position of what is known here'
mistake $S $A 's/q \&\& q->generation == t->generation/q/' 'a token given to who has the slot now'
mistake $S runtime/engine/stage_step.c 's/-1 - (int32_t)e->slot/-1 - b->n_seqs/' 'the entry'"'"'s number for its slot'
mistake $S runtime/engine/stage.c 's/        SP_TRY(sp_stage_settle(s, err));//' 'blocks sealed under a running step'
mistake $S runtime/engine/stage.c 's/sp_stage_is_pending(s) ? 0 : SP_NEVER/SP_NEVER/' 'a frame waited for while a step ends'
echo "$((n - missed)) of $n mistakes caught"
[ "$missed" = 0 ]
