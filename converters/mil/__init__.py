"""A reference interpreter of ML Programs: it runs a saved `.mlpackage` where Core ML cannot.

Core ML predicts on macOS only. What `to_coreml` wrote is read back from disk (the program from
`model.mlmodel`, the weights from `weight.bin`) and executed operation by operation, so that a
package's parity with its network can be measured on the machine that made it:

    MILProgram.open(Path("unet.mlpackage")).run(feeds)  # {"prediction": array}

Nothing of the exporting process is used: a weight written to the wrong place, a wrong stride or a
lost transpose is in the files, and so in the result.
"""

from mmsr_edge.converters.mil.program import MILProgram as MILProgram
