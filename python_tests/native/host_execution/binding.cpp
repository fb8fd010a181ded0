// The controls of the host execution, and its probes.
#include "binding.h"

#include "common/device/limits.h"
#include "host_execution/controls.h"
#include "host_execution/probes.h"

namespace segunc {
namespace {

// The names under which tests know them.
const std::map<std::string, host::Operation> kOperations = {
    {"barrier", host::Operation::barrier},   {"warp_sync", host::Operation::warp_sync},
    {"exchange", host::Operation::exchange}, {"atomic", host::Operation::atomic},
    {"relaxed", host::Operation::relaxed},
};

std::string name_of(host::Operation operation) {
  for (const auto& [name, value] : kOperations) {
    if (value == operation) return name;
  }
  throw std::logic_error("an operation without a name");
}

// (operation, file, function, line, runs) of each.
py::list recorded_operations() {
  py::list result;
  for (const host::OperationSite& at : host::recorded_operations()) {
    result.append(py::make_tuple(name_of(at.operation), at.site.file, at.site.function,
                                 at.site.line, at.runs));
  }
  return result;
}

const Binding binding_of_host_execution([](py::module_& m) {
  m.def("set_seed", &host::set_seed);
  m.def("counters", [] {
    const host::Counters c = host::counters();
    return py::dict("launches"_a = c.launches, "threads"_a = c.threads, "switches"_a = c.switches,
                    "accesses"_a = c.accesses, "host_flags"_a = c.host_flags,
                    "shared_bytes"_a = c.shared_bytes);
  });
  py::register_exception<host::Error>(m, "HostExecutionError", PyExc_RuntimeError);
  m.def("probes", &probes::names);
  m.attr("probe_data_size") = probes::kDataSize;
  m.def("run_probe", [](const std::string& name, bool correct, const py::array_t<int32_t>& data) {
    if (data.size() != probes::kDataSize) throw std::invalid_argument("data has the wrong size");
    probes::run(name, correct, const_cast<int32_t*>(data.data()));
  });
  m.attr("probe_static_bytes") = probes::kStaticBytes;
  m.def("launch_of_shape", &probes::launch_of_shape, "blocks"_a = 1, "threads"_a = 32,
        "dynamic_shared_bytes"_a = 0, "reaches"_a = true);
  m.attr("max_shared_bytes") = device::kMaxSharedBytes;
  m.def("record_operations", &host::record_operations);
  m.def("recorded_operations", recorded_operations);
  m.def("inject_fault", [](const std::string& operation, const std::string& file, int line) {
    host::inject_fault({lookup(kOperations, operation), file, line});
  });
  m.def("clear_fault", &host::clear_fault);
});

}  // namespace
}  // namespace segunc
