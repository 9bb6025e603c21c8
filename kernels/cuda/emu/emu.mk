# The emulated device: `include kernels/cuda/emu/emu.mk` after the variables of the Makefile and
# before its `$B/tests/%` rule is used. Targets:
#   emu        $B/superpod_cuda_emu.so: every .cu and .cc of kernels/cuda, and EMU_HOST (a list of
#              x.emu.o, which compile x.c or x.cc against the shim); superpod_cuda_race.so likewise
#   emu-check  the same host sources against the toolkit's own headers; says "skipped" without it
#   nvcc-check every .cu through nvcc for the three architectures, only compiled; likewise
# and rules that build tests/kernels/cuda/test_emu_*.c, which the ordinary lists find.
CXX ?= g++
NVCC ?= $(firstword $(wildcard /usr/local/cuda/bin/nvcc) nvcc)
CUDA_INC ?= $(firstword $(wildcard /usr/local/cuda/include))
NVCC_ARCHS := 80 90a 100

EMU_DIR := kernels/cuda/emu
EMU_SRCS := $(filter-out %/race.cc,$(wildcard $(EMU_DIR)/*.cc))
EMU_INC := -I. -I$(EMU_DIR)/shim
EMU_WARN := -Wall -Wextra -Wshadow -Wundef -Wpointer-arith -Wwrite-strings -Wvla $(if $(CI),-Werror)
# The thread sanitizer knows nothing of fibres: in that mode the emulator is built without it.
EMU_OPT := $(filter-out -DSP_DEBUG,$(if $(filter tsan,$(MODE)),-O1 -g,$(OPT_$(MODE):-O1=-O2)))
EMU_CXXFLAGS = -std=c++17 -D_GNU_SOURCE $(EMU_WARN) $(EMU_OPT) -fPIC -ffp-contract=off -fno-fast-math \
	-fno-math-errno $(EMU_INC) $(CXXFLAGS)
# Kernels for the race checker: the calls go to race.cc; alignment and bounds end in a trap that
# fault.cc understands. -O1 keeps one access one call.
EMU_RACE_FLAGS := -O1 -fsanitize=thread -fsanitize=alignment,bounds \
	-fsanitize-undefined-trap-on-error

EMU_OBJS := $(EMU_SRCS:%.cc=$B/%.o)
EMU_RACE := $B/$(EMU_DIR)/race.o

$B/$(EMU_DIR)/%.o: $(EMU_DIR)/%.cc
	@mkdir -p $(@D); echo "  emu     $<"; $(CXX) $(EMU_CXXFLAGS) -MMD -MP -c $< -o $@
$B/%.emu.o: %.cu
	@mkdir -p $(@D); echo "  emu     $<"; $(CXX) -x c++ $(EMU_CXXFLAGS) -MMD -MP -c $< -o $@
$B/%.emu.o: %.cc
	@mkdir -p $(@D); echo "  emu     $<"; $(CXX) $(EMU_CXXFLAGS) -MMD -MP -c $< -o $@
$B/%.emu.o: %.c
	@mkdir -p $(@D); echo "  emu     $<"; $(CC) $(ALL_CFLAGS) -fPIC -I$(EMU_DIR)/shim -MMD -MP -c $< -o $@
$B/%.race.o: %.cu
	@mkdir -p $(@D); echo "  race    $<"
	@$(CXX) -x c++ $(filter-out -fsanitize=% -fno-sanitize-recover=%,$(EMU_CXXFLAGS)) \
		$(EMU_RACE_FLAGS) -MMD -MP -c $< -o $@

# ---- the shared object ----
CUDA_CUS := $(wildcard kernels/cuda/*.cu)
CUDA_CCS := $(wildcard kernels/cuda/*.cc)
EMU_KERNELS := $(CUDA_CUS:%.cu=$B/%.emu.o) $(CUDA_CCS:%.cc=$B/%.emu.o)
EMU_HOST ?=
emu: $B/superpod_cuda_emu.so ## the cuda backend on the emulated device
$B/superpod_cuda_emu.so: $(EMU_KERNELS) $(EMU_HOST) $(EMU_OBJS)
	@echo "  link    $@"; $(CXX) -shared -Wl,-Bsymbolic $(EMU_CXXFLAGS) $^ -lpthread -ldl -lm -o $@
# Half a minute of one core. What the thread sanitizer is built for has no use for it.
# Whoever has no C++ compiler builds all else.
HAVE_CXX := $(shell $(CXX) --version >/dev/null 2>&1 && echo 1)
ifeq ($(HAVE_CXX)$(filter tsan,$(MODE)),1)
all: $B/superpod_cuda_emu.so
endif
# The same with the race checker instead of speed.
$B/superpod_cuda_race.so: $(CUDA_CUS:%.cu=$B/%.race.o) $(CUDA_CCS:%.cc=$B/%.emu.o) $(EMU_HOST) \
		$(EMU_OBJS) $(EMU_RACE)
	@echo "  link    $@"; $(CXX) -shared -Wl,-Bsymbolic $(EMU_CXXFLAGS) $^ -lpthread -ldl -lm -o $@

# ---- tests ----
EMU_T := tests/kernels/cuda
EMU_T_CUS := $(wildcard $(EMU_T)/emu_*.cu)
$B/$(EMU_T)/test_%.o: $(EMU_T)/test_%.c
	@mkdir -p $(@D); echo "  compile $<"; $(CC) $(ALL_CFLAGS) -I$(EMU_DIR)/shim -MMD -MP -c $< -o $@
EMU_LINK = @echo "  link    $@"; $(CXX) $(OPT_$(MODE)) $^ $(LDFLAGS) -lcunit -lpthread -ldl -lm -o $@
# They need no part of the server.
EMU_HARNESS := $B/tests/harness.o
$B/$(EMU_T)/test_emu_%: $B/$(EMU_T)/test_emu_%.o $(EMU_T_CUS:%.cu=$B/%.emu.o) $(EMU_OBJS) \
		$(EMU_HARNESS)
	$(EMU_LINK)
ifneq ($(MODE),tsan)
$B/$(EMU_T)/test_emu_race: $B/$(EMU_T)/test_emu_race.o $(EMU_T_CUS:%.cu=$B/%.race.o) $(EMU_OBJS) \
		$(EMU_RACE) $(EMU_HARNESS)
	$(EMU_LINK)
endif
$B/$(EMU_T)/test_emu_toolkit: $B/$(EMU_T)/test_emu_toolkit.o $B/$(EMU_T)/emu_toolkit.o $(EMU_HARNESS)
	$(EMU_LINK)
# The one object that sees the toolkit's own headers, where they are.
$B/$(EMU_T)/emu_toolkit.o: $(EMU_T)/emu_toolkit.cc
	@mkdir -p $(@D); echo "  emu     $<"
	@$(CXX) $(filter-out -I$(EMU_DIR)/shim,$(EMU_CXXFLAGS)) \
		$(if $(CUDA_INC),-DEMU_TOOLKIT -isystem $(CUDA_INC)) -MMD -MP -c $< -o $@

# ---- the toolkit's word ----
EMU_API := $(wildcard $(EMU_DIR)/api_*.cc) $(EMU_DIR)/graph.cc $(EMU_DIR)/stream.cc \
	$(EMU_T)/emu_cublaslt.cc
emu-check: ## the emulator's runtime against the toolkit's prototypes and values
ifeq ($(CUDA_INC),)
	@echo "emu-check skipped: no CUDA toolkit (CUDA_INC=)"
else
	@for f in $(EMU_API); do \
		$(CXX) -std=c++17 -D_GNU_SOURCE -DEMU_TOOLKIT $(EMU_WARN) -Wmissing-declarations -Werror -fsyntax-only -I. \
		-isystem $(CUDA_INC) $$f || exit 1; done; echo "emu-check passed"
endif
nvcc-check: ## every .cu by nvcc, for each architecture, without warnings
	@if ! $(NVCC) --version >/dev/null 2>&1; then echo "nvcc-check skipped: no nvcc"; exit 0; fi; \
	for a in $(NVCC_ARCHS); do for f in $(CUDA_CUS) $(EMU_T_CUS); do \
		$(NVCC) -std=c++17 -O2 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Werror -fmad=false \
		-gencode=arch=compute_$$a,code=sm_$$a -I. -c $$f -o /dev/null || exit 1; done; done; \
	echo "nvcc-check passed"

-include $(EMU_OBJS:.o=.d) $(EMU_RACE:.o=.d) $(EMU_KERNELS:.o=.d) $(EMU_T_CUS:%.cu=$B/%.emu.d) \
	$(EMU_T_CUS:%.cu=$B/%.race.d) $(CUDA_CUS:%.cu=$B/%.race.d)
.PHONY: emu emu-check nvcc-check
