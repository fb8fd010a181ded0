# The families of operators, a folder of csrc each, and what of it is compiled where:
#   register_cpu.cpp    once, into the CPU library      cpu/*.cpp   there, per instruction set
#   register_cuda.cpp   once, into the CUDA library     cuda/*.cu   there, and for host runs
get_filename_component(csrc ${CMAKE_CURRENT_LIST_DIR}/../csrc ABSOLUTE)
set(rooms blocks components counts cross_entropy dice expected_cross_entropy label_uncertainty scale
    statistics)

set(register_cpu "")
set(register_cuda "")
# Beside what families share.
set(cpu_kernels ${csrc}/common/cpu/reduction.cpp)
set(cuda_kernels ${csrc}/common/device/reduction.cu)
foreach(room IN LISTS rooms)
  file(GLOB cpp CONFIGURE_DEPENDS ${csrc}/${room}/cpu/*.cpp)
  file(GLOB cu CONFIGURE_DEPENDS ${csrc}/${room}/cuda/*.cu)
  if(NOT cpp OR NOT cu)
    message(FATAL_ERROR "csrc/${room} has no kernels in cpu/ or none in cuda/")
  endif()
  list(APPEND register_cpu ${csrc}/${room}/register_cpu.cpp)
  list(APPEND register_cuda ${csrc}/${room}/register_cuda.cpp)
  list(APPEND cpu_kernels ${cpp})
  list(APPEND cuda_kernels ${cu})
endforeach()
