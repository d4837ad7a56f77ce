"""How useful is pretraining, with how many labels? (Newell and Deng, CVPR 2020)

    python main.py -e u1 -r studies/utility --set preset=mini

Each method pretrains once on every variant of the rendered data, without labels; then its
network, and one from scratch, learn to classify from few and from many labels. `smoke` shows in
five minutes that all works, `mini` answers in under two hours on two cores, `paper` has the
published sizes and wants a cluster. Any setting can be changed, as in --set seeds=5
"""

presets = {
    "mini": {
        "methods": ["byol", "amdim", "simclr", "rotate", "vae"],  # the slowest first
        "variants": ["0010", "1000"],
        "labels": [50, 100, 250, 1000, 4000, 10000],
        "seeds": 3,
        "files": "syn/r9n",
        "res": 32,
        "images": 12000,
        "pretrain": {"session.train_iters": 100, "scheduler.milestones": [2, 60]},
        "finetune": {
            "session.train_iters": 100,
            "scheduler.milestones": [1, 5],
            "scheduler.target_lrs": [0, 0.005, 1e-6],
        },
        "cpu": 1.0,
        "gpu": 0.25,
    },
}
presets["smoke"] = presets["mini"] | {
    "methods": ["rotate", "simclr"],
    "variants": ["0000"],
    "labels": [20, 50, 200, 1000],
    "seeds": 2,
    "images": 1200,
    "pretrain": {"session.train_iters": 50, "scheduler.milestones": [1, 4]},
    "finetune": {"session.train_iters": 50, "scheduler.milestones": [1, 2]},
}
presets["paper"] = presets["mini"] | {
    "methods": ["amdim", "cmc", "rotate", "vae"],
    "variants": ["0000", "0100", "0110", "0001", "0101", "0010", "0111", "1000", "1011", "1100",
                 "1110", "1111"],
    "labels": [100, 250, 1000, 4000, 20000, 50000, 100000, 200000],
    "files": "syn/r50",
    "res": 64,
    "images": 480000,
    "pretrain": {},  # as the files say
    "finetune": {},
    "cpu": 2.0,
    "gpu": 1.0,
}  # fmt: skip


def study(exp, methods, variants, labels, seeds, files, res, images, pretrain, finetune, cpu,
          gpu):  # fmt: skip
    """Pretraining, then the same training from each of its networks and from scratch."""

    def data(variant):
        return {"SynDataset.dataset_choice": variant, "SynDataset.render_images": images,
                "BaseDataset.input_res": res}  # fmt: skip

    def labelled(variant, method, amount, seed):
        """A training on labels, which are the same for all methods."""
        values = data(variant) | {
            "include": f"{files}/classify",
            "Wrapper.pretrained": method and f"{exp}/pretrain/{method}/{variant}",
            "BaseDataset.semisupervised": amount,
            "BaseDataset.label_seed": seed,
            "session.seed": seed,
            "session.valid_iters": 0,  # tested once, at the end
        }
        if method == "cmc":  # two networks, as its own file has them
            size = {"ResNet.width": 0.25} if files == "syn/r9n" else {"ResNet.out_feats": 128}
            values |= {"Wrapper.model_choice": "cmc", "ResNet.is_half": True} | size
        length = {"scheduler.milestones": [5, 200 if amount < 20000 else 600]}
        return values | (finetune or length)

    each = {"checkpoint_at_end": True, "resources_per_trial": {"cpu": cpu, "gpu": gpu}}
    return {
        "question": "How many labels does pretraining save on rendered objects?",
        "stages": {
            "pretrain": each | {
                "trials": [data(variant) | {"include": f"{files}/{method}"} | pretrain
                           for variant in variants for method in methods],
                "move": "{cfg[Wrapper.model_choice]}/{cfg[SynDataset.dataset_choice]}",
            },
            "finetune": each | {
                "checkpoint_at_end": False,
                "trials": [labelled(variant, method, amount, seed)
                           for seed in range(seeds) for variant in variants
                           for amount in labels for method in [None, *methods]],
            },
        },
    }  # fmt: skip
