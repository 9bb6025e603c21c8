# The host side of the cuda backend, for the emulated device and, where nvcc is, for GPUs. Included
# after emu.mk, whose lists of kernels it uses.
#   all         also builds superpod_cuda.so where nvcc is (NVCC= turns it off)
#   emu         superpod_cuda_emu.so (emu.mk); EMU_HOST is what this file adds to it
#
# A plugin has its own copies of the few files of the base that it calls: nothing but its one entry
# passes between it and the binary, and neither sees the other's names.
CUDA_HOST_SRCS := $(wildcard kernels/cuda/*.c)
CUDA_BASE_SRCS := $(addprefix runtime/base/,status.c mem.c clock.c dtype.c) kernels/args.c \
	kernels/check.c comm/group_nccl.c comm/group_tree.c
EMU_HOST += $(CUDA_HOST_SRCS:%.c=$B/%.emu.o) $(CUDA_BASE_SRCS:%.c=$B/%.emu.o)
$B/superpod_cuda_emu.so $B/superpod_cuda_race.so: $(EMU_HOST)

# ---- superpod_cuda.so ----
HAVE_NVCC := $(if $(NVCC),$(shell $(NVCC) --version >/dev/null 2>&1 && echo 1))
# Binaries for data centre cards, and the intermediate form of the oldest for all others.
NVCC_GENCODE := -gencode=arch=compute_80,code=[sm_80,compute_80] \
	-gencode=arch=compute_90a,code=sm_90a -gencode=arch=compute_100,code=sm_100
NVCC_FLAGS := -std=c++17 -O3 -lineinfo -fmad=false $(NVCC_GENCODE) -t 2 \
	$(if $(CI),-Werror all-warnings) -Xcompiler -fPIC,-Wall,-ffp-contract=off -I.
CUDA_OBJS := $(CUDA_CUS:%.cu=$B/%.gpu.o) $(CUDA_HOST_SRCS:%.c=$B/%.gpu.o) \
	$(CUDA_BASE_SRCS:%.c=$B/%.gpu.o)

$B/%.gpu.o: %.cu
	@mkdir -p $(@D); echo "  nvcc    $<"; $(NVCC) $(NVCC_FLAGS) -MMD -MP -c $< -o $@
$B/%.gpu.o: %.c
	@mkdir -p $(@D); echo "  gpu     $<"
	@$(CC) $(ALL_CFLAGS) -fPIC -isystem $(CUDA_INC) -MMD -MP -c $< -o $@
# nvcc links its runtime into the object: what remains to be found is the driver, by that runtime.
$B/superpod_cuda.so: $(CUDA_OBJS)
	@echo "  link    $@"; $(NVCC) -shared $(NVCC_GENCODE) -Xlinker -Bsymbolic $^ -lpthread -ldl -lm -o $@
ifeq ($(HAVE_NVCC),1)
cuda: $B/superpod_cuda.so ## the cuda backend for GPUs; needs nvcc
else
cuda:
	@echo "make cuda needs nvcc of a CUDA toolkit: NVCC=/path/to/nvcc make cuda" >&2; exit 1
endif
ifeq ($(HAVE_NVCC)$(MODE),1release)
all: $B/superpod_cuda.so
endif

# ---- tests ----
# Tests of the launcher find the plugin as an installed binary does, in ../lib/superpod.
CUDA_SO_T := $(addprefix tests/launcher/test_,bench_gpu device plan topology_gpu)
$B/tests/lib/superpod/superpod_cuda_emu.so: $B/superpod_cuda_emu.so
	@mkdir -p $(@D); ln -sf ../../../superpod_cuda_emu.so $@
ifneq ($(MODE),tsan)
$(CUDA_SO_T:%=$B/%): | $B/tests/lib/superpod/superpod_cuda_emu.so
endif
# They need the server's other parts too; the emulated device is linked in, so that a test can order
# its threads and break its launches. NCCL is found by dlopen(NULL): the program exports its fake.
CUDA_T := $(addprefix $(EMU_T)/test_,cuda_dev cuda_reserve gemm norm embed elementwise attend \
	rope draw fast feed) $(addprefix tests/runtime/model/test_forward_,cuda ahead) \
	tests/runtime/engine/test_kv_mirror
NCCL_T := $(EMU_T)/test_nccl $(EMU_T)/test_nccl_group tests/runtime/model/test_forward_ahead_tp
CUDA_EMU_ALL = $(EMU_KERNELS) $(CUDA_HOST_SRCS:%.c=$B/%.emu.o) $B/comm/group_nccl.emu.o $(EMU_OBJS)
$(patsubst %,$B/%.o,$(filter tests/runtime/%,$(CUDA_T) $(NCCL_T))): $B/%.o: %.c
	@mkdir -p $(@D); echo "  compile $<"; $(CC) $(ALL_CFLAGS) -I$(EMU_DIR)/shim -MMD -MP -c $< -o $@
$B/$(EMU_T)/emu_nccl.o: $(EMU_T)/emu_nccl.cc
	@mkdir -p $(@D); echo "  emu     $<"
	@$(CXX) $(EMU_CXXFLAGS) $(CUDA_INC:%=-idirafter %) -MMD -MP -c $< -o $@
$B/$(EMU_T)/emu_cublaslt.o: $(EMU_T)/emu_cublaslt.cc
	@mkdir -p $(@D); echo "  emu     $<"
	@$(CXX) $(filter-out -I$(EMU_DIR)/shim,$(EMU_CXXFLAGS)) \
		$(if $(CUDA_INC),-DEMU_TOOLKIT -isystem $(CUDA_INC)) -MMD -MP -c $< -o $@
$(NCCL_T:%=$B/%): $B/$(EMU_T)/emu_nccl.o
$B/$(EMU_T)/test_fast: $B/$(EMU_T)/emu_cublaslt.o
$(CUDA_T:%=$B/%) $(NCCL_T:%=$B/%): %: %.o $(CUDA_EMU_ALL) $B/libtest.a $B/libsp.a
	@echo "  link    $@"; $(CXX) $(OPT_$(MODE)) -rdynamic $^ $(LDFLAGS) $(LIBS) -lcunit -o $@
# The kernels compiled for the race checker, which the thread sanitizer's build has no use for.
ifneq ($(MODE),tsan)
$B/$(EMU_T)/test_race: $B/$(EMU_T)/test_race.o $(CUDA_CUS:%.cu=$B/%.race.o) $(EMU_OBJS) $(EMU_RACE) \
		$B/libtest.a $B/libsp.a
	@echo "  link    $@"; $(CXX) $(OPT_$(MODE)) $^ $(LDFLAGS) $(LIBS) -lcunit -o $@
endif

-include $(CUDA_OBJS:.o=.d) $(EMU_HOST:.o=.d) $(CUDA_T:%=$B/%.d) $(NCCL_T:%=$B/%.d)
.PHONY: cuda
