"""Benchmark suites, one module each: a `Config` (a BenchmarkConfig) and `run(config) -> BenchmarkResult`."""

# What `python -m jobs.benchmark suite=NAME` knows, and what each suite measures. A suite is imported only when it runs.
SUITES = {
    "data": "photos per second from shards: the bare loop, our stream from S3, and a torch DataLoader; and rows per second of preparing",
    "inference": "answers with masks per second: the released code's way, transformers' generate, and the engine, against a floor",
    "serving": "answers per second of the deployed app at rising rates: against the bare engine, a plain server, and @serve.batch",
    "train": "the training loop: seconds of a step against the bare model, two workers against one, checkpoints, resuming, old habits",
    "metrics": "matching and counting the masks of a test set without a model, against a loop over bitmaps and against pycocotools",
    "size": "parameters of the presets: all, trained, and the layers that adapters touch",
    "flops": "operations of one answer: PixelLM and a SAM-based model with the same language model, part by part",
}
