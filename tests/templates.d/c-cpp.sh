cd "$(mktemp -d)"
printf 'cmake_minimum_required(VERSION 3.20)\nproject(answer CXX)\nadd_executable(answer answer.cpp)\n' > CMakeLists.txt
printf '#include <iostream>\nint main() { std::cout << 6 * 7 << std::endl; }\n' > answer.cpp
cmake -G Ninja -B build .
cmake --build build
[ "$(build/answer)" = 42 ]
valgrind --error-exitcode=1 build/answer
gdb --version
clangd --version
