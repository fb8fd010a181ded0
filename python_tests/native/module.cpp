// The Python module of the native tests: what the bindings of its folders define. One object file
// serves all builds: each imports under its own name.
#include "binding.h"

PYBIND11_MODULE(segunc_host_plain, m) { segunc::Binding::define_all(m); }
PYBIND11_MODULE(segunc_host_sanitize, m) { segunc::Binding::define_all(m); }
PYBIND11_MODULE(segunc_host_race, m) { segunc::Binding::define_all(m); }
