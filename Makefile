# superpod: one non-recursive Makefile. MODE is release, debug, asan or tsan; each builds in its own
# folder, so that none needs a clean. `make help` lists the targets.
MODE ?= release
B := build/$(MODE)
PREFIX ?= /usr/local
VERSION := 0.1.0

have = $(shell pkg-config --exists $(1) 2>/dev/null && echo 1)
PKGS := libcjson libpcre2-8 libutf8proc hwloc yaml-0.1 libevent openssl libxxhash

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wformat=2 -Wundef \
	-Wpointer-arith -Wwrite-strings -Wno-format-nonliteral -Wno-format-truncation -Wno-unknown-warning-option $(if $(CI),-Werror)
OPT_release := -O3 -g
OPT_debug := -O0 -g3 -DSP_DEBUG
# Under sanitizers gcc loses what it knows of ranges, and its flow warnings cry wolf.
CALM := -Wno-maybe-uninitialized -Wno-stringop-overflow
OPT_asan := $(CALM) -O1 -g -DSP_DEBUG -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
OPT_tsan := $(CALM) -O1 -g -DSP_DEBUG -fsanitize=thread
# Bits are part of the contract: no contraction, no fast-math, anywhere.
BITS := -ffp-contract=off -fno-fast-math -fno-math-errno
ALL_CFLAGS = -std=gnu11 $(WARN) $(OPT_$(MODE)) $(BITS) -fstack-protector-strong -D_GNU_SOURCE \
	-DSP_VERSION='"$(VERSION)"' -I. $(PKG_CFLAGS) $(CFLAGS)
PKG_CFLAGS := $(shell pkg-config --cflags $(PKGS) 2>/dev/null)
# Headers only: these libraries are opened at run time, where there are any.
PKG_CFLAGS += $(foreach p,pmix ucx,$(shell pkg-config --cflags $(p) 2>/dev/null))
PKG_LIBS := $(shell pkg-config --libs $(PKGS) 2>/dev/null)
LIBS = -Wl,--build-id=sha1 $(PKG_LIBS) -lpthread -lm -ldl

# Sources compiled once per instruction set (kernels/cpu/README.md); everything else is plain.
ARCH := $(shell uname -m)
ISA_SRCS := $(wildcard kernels/cpu/isa_*.c)
ISAS := $(if $(filter x86_64,$(ARCH)),avx2 avx512) generic
ISA_FLAGS_avx2 := -mavx2 -mfma -mf16c -mtune=haswell
ISA_FLAGS_avx512 := -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c -mtune=icelake-server
ISA_FLAGS_generic :=

SRCS := $(filter-out $(ISA_SRCS) kernels/cuda/% comm/group_nccl.c,$(shell find runtime kernels comm frontend launcher -name '*.c' | sort))
OBJS := $(SRCS:%.c=$B/%.o) $(foreach i,$(ISAS),$(ISA_SRCS:%.c=$B/%.$(i).o))
LIB := $(filter-out $B/launcher/main.o,$(OBJS))
TEST_SRCS := $(shell find tests -name 'test_*.c' | sort)
TEST_HELP := $(filter-out $(TEST_SRCS),$(wildcard tests/*.c))
TESTS := $(TEST_SRCS:%.c=$B/%)

all: $B/superpod ## the one binary (default): build/release/superpod

$B/superpod: $B/launcher/main.o $B/libsp.a
	@echo "  link    $@"; $(CC) $(ALL_CFLAGS) $^ $(LDFLAGS) $(LIBS) -o $@
$B/libsp.a: $(LIB)
	@rm -f $@; $(AR) rcs $@ $^
$B/%.o: %.c
	@mkdir -p $(@D); echo "  compile $<"; $(CC) $(ALL_CFLAGS) -MMD -MP -c $< -o $@
define isa_rule
$B/%.$(1).o: %.c
	@mkdir -p $$(@D); echo "  compile $$< ($(1))"
	@$$(CC) $$(ALL_CFLAGS) $$(ISA_FLAGS_$(1)) -DSP_ISA=$(1) -DSP_ISA_$(1) -MMD -MP -c $$< -o $$@
endef
$(foreach i,$(ISAS),$(eval $(call isa_rule,$(i))))
# An archive: a test takes the helpers it names, and its fakes stand before the real things.
$B/libtest.a: $(TEST_HELP:%.c=$B/%.o)
	@rm -f $@; $(AR) rcs $@ $^
$B/tests/%: $B/tests/%.o $B/libtest.a $B/libsp.a
	@echo "  link    $@"; $(CC) $(ALL_CFLAGS) $^ $(LDFLAGS) $(LIBS) -lcunit -o $@

tests: $(TESTS) $B/superpod ## builds every test program
test: ## builds and runs everything that ./test runs, without installing anything
	@tests/run_tests.sh
unit: $(TESTS) ## runs the unit tests of this MODE
	@tests/run_unit.sh $B
run: ## builds and serves the demo model
	@./run --no-install
bench: all ## the speeds and sizes, as ratios (benchmarks, not tests)
	@tests/bench.sh
debug asan tsan: ; @$(MAKE) --no-print-directory MODE=$@ tests
lint: ## formatting, floors, headers alone, clang-tidy, warnings of gcc and clang as errors
	@tests/lint.sh
format: ## rewrites our sources with clang-format
	@git ls-files '*.c' '*.h' | xargs clang-format -i
info: ## what was found
	@echo "mode $(MODE), compiler $(CC) $(shell $(CC) -dumpversion), isas: $(ISAS)"
	@for p in $(PKGS); do printf '%s ' "$$p"; pkg-config --modversion $$p 2>/dev/null || echo missing; done
	@printf 'nvcc '; $(NVCC) --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' | grep . || \
		echo "missing: superpod_cuda.so is not built (--device cuda)"
install: all ## DESTDIR and PREFIX (/usr/local) as usual
	install -Dm755 $B/superpod $(DESTDIR)$(PREFIX)/bin/superpod
	@for so in superpod_cuda.so superpod_cuda_emu.so; do [ ! -e $B/$$so ] || \
		install -v -Dm755 $B/$$so $(DESTDIR)$(PREFIX)/lib/superpod/$$so || exit 1; done
clean: ; rm -rf build
help: ## this list
	@grep -hE '^[a-z ]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

-include $(OBJS:.o=.d) $(TESTS:=.d) $(TEST_HELP:%.c=$B/%.d)
.PHONY: all tests test unit run bench debug asan tsan lint format info install clean help
.SECONDARY:
include kernels/cuda/emu/emu.mk
include kernels/cuda/cuda.mk
