"""Losses of the pretraining methods: plain functions of tensors.

`contrastive` has those with negatives from the batch or a queue, `redundancy` those without
negatives, `clusters` those over prototypes, `banks` those over locations and memory banks,
and `monitors` the numbers that tell learning from collapse.

Conventions. A loss is a 0-d tensor in nats unless its docstring says otherwise, computed in
float32 at least, whatever autocast says. Rows are taken as they come: who wants the unit sphere
normalises before. A loss that couples the images of a batch takes, besides the rows of this
process, the rows of all processes (`all_...`, gathered with gradients, in the order of the
ranks) and `offset`, the place of this process's first row among them. Its value is then the
mean over this process's rows, or a statistic of all rows: averaged over the processes, value
and gradient are those of the whole batch.
"""
