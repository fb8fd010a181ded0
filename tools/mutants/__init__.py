"""The kernels' sources, changed at random: would the native tests notice?"""
