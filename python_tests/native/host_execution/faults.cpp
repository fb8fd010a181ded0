#include "faults.h"

#include <algorithm>

namespace segunc::host {

void Faults::note(Operation operation, const Site& site) {
  const auto is_it = [&](const OperationSite& known) {
    return known.site.line == site.line && known.operation == operation && known.site == site;
  };
  // Mostly it is the one that ran before.
  if (!sites_.empty() && is_it(sites_[last_])) return;
  const auto found = std::find_if(sites_.begin(), sites_.end(), is_it);
  last_ = size_t(found - sites_.begin());
  if (found == sites_.end()) sites_.push_back({operation, site});
}

bool Faults::matches(Operation operation, const Site& site) const {
  const std::string file = site.file;
  return operation == fault_.operation && file.size() >= fault_.file.size() &&
         file.compare(file.size() - fault_.file.size(), std::string::npos, fault_.file) == 0;
}

}  // namespace segunc::host
