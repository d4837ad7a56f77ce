"""Losses of the pretraining methods: plain functions of tensors.

`contrastive` has those with negatives from the batch or a queue, `redundancy` those without
negatives, `clusters` those over prototypes, `banks` those over locations and memory banks,
and `monitors` statistics that detect collapse.

Conventions. A loss is a 0-d tensor in nats unless its docstring says otherwise, computed in
at least float32 even under autocast. Rows are not normalised: the caller does that. A loss that
couples the images of a batch takes, besides the rows of this process, those of all processes
(`all_...`, gathered with gradients, in the order of ranks) and `offset`, the index of this
process's first row among them. Its value is then the mean over this process's rows, or a
statistic of all rows: averaged over the processes, value and gradient equal those of one
process with the whole batch.
"""
