"""The long tail: ops without a kernel, fused into one loop nest for each value that lies in memory.

A plan describes its loops (:mod:`omnic.targets.tvm.tail.loops`) without TVM; only a program that has some imports it to
make objects or C of them (:mod:`omnic.targets.tvm.tail.build`).
"""
