#include "faults.h"

#include <algorithm>

namespace segunc::host {

void Faults::note(Operation operation, const Site& site) {
  const auto is_it = [&](const OperationSite& known) {
    return known.site.line == site.line && known.operation == operation && known.site == site;
  };
  // Mostly it is the one that ran before.
  if (last_ == sites_.size() || !is_it(sites_[last_])) {
    last_ = size_t(std::find_if(sites_.begin(), sites_.end(), is_it) - sites_.begin());
    if (last_ == sites_.size()) sites_.push_back({operation, site, 0});
  }
  sites_[last_].runs++;
}

bool Faults::matches(Operation operation, const Site& site) const {
  const std::string file = site.file;
  return operation == fault_.operation && file.size() >= fault_.file.size() &&
         file.compare(file.size() - fault_.file.size(), std::string::npos, fault_.file) == 0;
}

}  // namespace segunc::host
