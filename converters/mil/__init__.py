"""Reference interpreter of ML Programs: runs a saved `.mlpackage` without Core ML.

Core ML runs on macOS only. The interpreter reads a package of `to_coreml` from disk (the program
from `model.mlmodel`, the weights from `weight.bin`) and executes it operation by operation, so that
the parity of a package is measured on the machine that exported it:

    MILProgram.open(Path("unet.mlpackage")).run(feeds)  # {"prediction": array}

Only the files are used, not the state of the exporting process, so that a misplaced weight, a
wrong stride or a lost transpose shows in the result.
"""

from mmsr_edge.converters.mil.program import MILProgram as MILProgram
