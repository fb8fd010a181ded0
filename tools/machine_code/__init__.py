"""What the compiled CUDA kernels cost, read from their machine code, and the gates that follow.

    python -m tools.machine_code build/cuda/segunc_ops_cuda.so build/cuda/segunc_ops_lines.so

resources.py     registers, local and static shared memory, occupancy, of every target
disassembly.py   the instructions of a kernel, each with the source lines that it comes from
markers.py       what the sources say of their kernels: hot loops, rare lines, vectors, budgets
control_flow.py  blocks, loops, and the most expensive way through a loop
hot_path.py      a kernel's main loop: its instructions, by pipe, and its bytes in flight
model.py         the bound that follows from these on an H100 and an H200
report.py        the rows of the table, and the gates
"""
