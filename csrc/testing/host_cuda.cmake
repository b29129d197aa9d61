# Runs the CUDA kernels on the host in CTest, under AddressSanitizer and UBSan: csrc/<op>/<op>_cuda.cu is compiled
# as C++ over testing/cuda_shim.h and linked with csrc/<op>/<op>_cuda_test.cpp, whose main() passes its arguments
# to cuda_shim::set_fault and returns 0 if all is well.
#
# Planted faults: every marked line of a .cu becomes a test `<op>_cuda_fault_<line>`, in which `<op>_cuda_test`
# must find something. There are two markers, both at the end of a line:
#   __syncthreads();  // fault: barrier           the barrier is left out
#   i = a + b;  // fault: a + b + 1               the right side of the = (or +=) is the expression of the comment
# The first is switched off while the unchanged source runs; the others are switched on in a copy of the source,
# built once. A statement with the second marker stands on one line, declares one variable at most, and has no
# parenthesis before its =.

include(CheckCXXSourceCompiles)
include(CMakePushCheckState)
set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=undefined)
set(shim_ld ${CMAKE_CURRENT_LIST_DIR}/cuda_shim.ld)
cmake_push_check_state(RESET)
set(CMAKE_REQUIRED_FLAGS "-fsanitize=address,undefined -fno-sanitize-recover=undefined")
check_cxx_source_compiles("int main() {}" VIMAE_HAS_SANITIZERS)
# Clang has no noinit here: shared memory is then not filled before a block.
set(CMAKE_REQUIRED_FLAGS "-Werror -Wl,-T,${shim_ld}")
check_cxx_source_compiles(
  "extern \"C\" char cuda_shim_shared_begin[], cuda_shim_shared_end[];
   int main() { static __attribute__((noinit)) int a; a = 1; return cuda_shim_shared_end - cuda_shim_shared_begin < a; }"
  VIMAE_SHIM_FILLS_SHARED)
cmake_pop_check_state()

add_library(cuda_shim OBJECT csrc/testing/cuda_shim.cpp)
target_include_directories(cuda_shim PUBLIC csrc)
target_compile_definitions(cuda_shim PUBLIC VIMAE_HOST_SHIM $<$<BOOL:${VIMAE_SHIM_FILLS_SHARED}>:VIMAE_SHIM_FILLS_SHARED>)
target_compile_options(cuda_shim PUBLIC -O1 -g -Wall -Wno-sign-compare -Wno-unknown-pragmas)
# The switching of threads is most of a test's time.
target_compile_options(cuda_shim PRIVATE -O2)
if(VIMAE_HAS_SANITIZERS)
  target_compile_options(cuda_shim PUBLIC ${sanitizers})
  target_link_options(cuda_shim PUBLIC ${sanitizers})
endif()
if(VIMAE_SHIM_FILLS_SHARED)
  target_link_options(cuda_shim PUBLIC -Wl,-T,${shim_ld})
endif()

function(vimae_host_cuda_executable name test source)
  # A file that includes the source: its language here says nothing about its language for nvcc.
  file(CONFIGURE OUTPUT ${name}.cpp CONTENT "#include \"${source}\"\n" @ONLY)
  add_executable(${name} ${test} ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp $<TARGET_OBJECTS:cuda_shim>)
  target_link_libraries(${name} PRIVATE core cuda_shim)
endfunction()

function(vimae_fault_test executable file line)
  get_filename_component(op ${file} NAME_WE)
  add_test(NAME ${op}_fault_${line} COMMAND ${executable} --fault=${file}:${line})
  set_tests_properties(${op}_fault_${line} PROPERTIES PASS_REGULAR_EXPRESSION
                       "FAILED|ERROR: AddressSanitizer|runtime error:|divergent barrier|missing lane")
endfunction()

function(vimae_host_cuda_test test)
  get_filename_component(folder ${test} DIRECTORY)
  get_filename_component(name ${test} NAME_WE)
  string(REGEX REPLACE "_test$" ".cu" file ${name})
  set(source ${folder}/${file})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  vimae_host_cuda_executable(${name} ${test} ${source})
  add_test(NAME ${name} COMMAND ${name})

  # Lines as a list: what CMake lists give a meaning of their own is put aside.
  file(READ ${source} text)
  string(REPLACE "[" "<bracket>" text "${text}")
  string(REPLACE "]" "<closing>" text "${text}")
  string(REPLACE ";" "<semicolon>" text "${text}")
  string(REPLACE "\\" "<backslash>" text "${text}")
  string(REPLACE "\n" ";" lines "${text}")
  set(copy "#line 1 \"${source}\"\n")
  set(copies FALSE)
  set(number 0)
  foreach(line IN LISTS lines)
    math(EXPR number "${number} + 1")
    if(line MATCHES "^ *__syncthreads\\(\\)<semicolon> +// fault: barrier$")
      vimae_fault_test(${name} ${file} ${number})
    elseif(line MATCHES "^([^=(]* [-+*]?= )(.*)<semicolon> +// fault: (.+)$")
      set(line "${CMAKE_MATCH_1}cuda_shim::fault(__FILE__, ${number}) ? (${CMAKE_MATCH_3}) : (${CMAKE_MATCH_2})<semicolon>")
      vimae_fault_test(${name}_faults ${file} ${number})
      set(copies TRUE)
    elseif(line MATCHES "// fault:")
      message(FATAL_ERROR "error: ${source}:${number}: what is this fault? See csrc/testing/host_cuda.cmake")
    endif()
    string(APPEND copy "${line}\n")
  endforeach()
  if(NOT copies)
    return()
  endif()
  string(REPLACE "<bracket>" "[" copy "${copy}")
  string(REPLACE "<closing>" "]" copy "${copy}")
  string(REPLACE "<semicolon>" ";" copy "${copy}")
  string(REPLACE "<backslash>" "\\" copy "${copy}")
  file(CONFIGURE OUTPUT ${name}_faults.cu CONTENT "${copy}" @ONLY)
  vimae_host_cuda_executable(${name}_faults ${test} ${CMAKE_CURRENT_BINARY_DIR}/${name}_faults.cu)
endfunction()

file(GLOB cuda_test_sources CONFIGURE_DEPENDS csrc/*/*_cuda_test.cpp)
foreach(test IN LISTS cuda_test_sources)
  vimae_host_cuda_test(${test})
endforeach()

add_executable(cuda_shim_test csrc/testing/cuda_shim_test.cpp $<TARGET_OBJECTS:cuda_shim>)
target_link_libraries(cuda_shim_test PRIVATE cuda_shim)
add_test(NAME cuda_shim_test COMMAND cuda_shim_test)
if(VIMAE_HAS_SANITIZERS)
  foreach(fault global:heap-buffer-overflow shared:insufficient\ space|global-buffer-overflow stack:stack-buffer-overflow)
    string(REGEX MATCH "^[a-z]+" case "${fault}")
    string(REGEX REPLACE "^[a-z]+:" "" message "${fault}")
    add_test(NAME cuda_shim_finds_${case} COMMAND cuda_shim_test ${case})
    set_tests_properties(cuda_shim_finds_${case} PROPERTIES PASS_REGULAR_EXPRESSION "${message}")
  endforeach()
endif()

# These are built here, with the shim.
list(FILTER test_sources EXCLUDE REGEX "/(cuda_shim|[a-z0-9_]*_cuda)_test.cpp$")
