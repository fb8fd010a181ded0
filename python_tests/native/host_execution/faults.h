// Operations of kernels, noted where they run and broken on request: would the tests notice? A
// broken operation is one call in the kernels' source, whichever kernel and thread runs it.
#pragma once
#include <vector>

#include "controls.h"

namespace segunc::host {

class Faults {
 public:
  // From now on notes where operations run.
  void record() {
    records_ = true;
    sites_.clear();
    last_ = 0;
  }
  // In the order of their first runs since record().
  const std::vector<OperationSite>& sites() const { return sites_; }

  void inject(const Fault& fault) { fault_ = fault; }
  void clear() { fault_ = {}; }

  // Whether the operation that is about to run is to be broken.
  bool strikes(Operation operation, const Site& site) {
    if (records_) note(operation, site);
    return site.line == fault_.line && matches(operation, site);
  }

 private:
  void note(Operation operation, const Site& site);
  bool matches(Operation operation, const Site& site) const;

  bool records_ = false;
  std::vector<OperationSite> sites_;
  size_t last_ = 0;  // the one noted last
  Fault fault_;
};

}  // namespace segunc::host
