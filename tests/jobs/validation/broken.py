"""Good files of the repository, each with one edit that breaks it, and what the check has to say: (file, found, put instead, message)."""

TRAIN = "jobs/configs/train_7b_muse_8xgpu.yaml"
COCO = "jobs/configs/prepare_coco.yaml"
SERVE = "serve/configs/7b.yaml"
AWS = "platform/cluster/aws-train.yaml"
HOSTS = "platform/cluster/onprem.yaml"

RUNS = [
    (TRAIN, "zero_stage: 2", "zero_stages: 2", "zero_stages: unknown key; did you mean 'zero_stage'?"),
    (TRAIN, "zero_stage: 2", "zero_stage: 4", "zero_stage: Input should be 0, 1, 2 or 3, found 4"),
    (TRAIN, "steps: 5000", "steps: many", "steps: Input should be a valid integer, unable to parse string as an integer, found 'many'"),
    (TRAIN, "steps: 5000\n", "", "steps: Field required"),
    (TRAIN, "language_model: 3.0e-4", "languagemodel: 3.0e-4", "learning_rates.languagemodel: unknown key; did you mean 'language_model'?"),
    (TRAIN, "frozen: [vision_tower]", "frozen: [vision_towr]", "frozen.0: Input should be 'vision_tower', 'projector'"),
    (TRAIN, "frozen: [vision_tower]", "frozen: [language_model]", "`lora` trains adapters in the language model, but it is in `frozen`"),
    (TRAIN, "num_workers: 8", "num_workers: 8\nmin_workers: 16", "min_workers is 16, num_workers 8"),
    (TRAIN, "precision: bf16", "precision: fp16", "precision: Input should be 'bf16' or 'fp32', found 'fp16'"),
    (TRAIN, "warmup_steps: 100", "warmup_steps: 100\nwarmup_steps: 50", "warmup_steps is there twice and only the last counts"),
    (TRAIN, "betas: [0.9, 0.95]", "betas: [0.9, 0.95", "not YAML: expected ',' or ']'"),
    (TRAIN, "run: 7b-muse", "run: 7b/muse", "run: String should match pattern"),
    (COCO, "source: coco", "source: cocoa", "unknown source 'cocoa'; did you mean 'coco'?"),
    (COCO, "shard_size_mb: 384", "shard_size: 384", "shard_size: unknown key; did you mean 'shard_size_mb'?"),
    (COCO, "max_rejected_share: 0.05", "max_rejected_share: 5", "max_rejected_share: Input should be less than"),
    ("jobs/configs/curate_v2.yaml", "pipeline: v2", "pipeline: v3", "pipeline: Input should be 'v1' or 'v2', found 'v3'"),
    ("jobs/configs/curate_v2.yaml", "  model: gpt-4o", "  modell: gpt-4o", "vision.modell: unknown key; did you mean 'model'?"),
    ("jobs/configs/pretrain_tower_cpu.yaml", "steps: 2000", "stepps: 2000", "stepps: unknown key; did you mean 'steps'?"),
    (TRAIN, "storage: s3://pixellm/runs", "storage: s3://pixellm/runs # AKIAABCDEFGHIJKLMNOP", "this is an AWS access key; take it out"),
]
DEPLOYMENTS = [
    (SERVE, "num_gpus: 1", "num_gpu: 1", "num_gpu: unknown key; did you mean 'num_gpus'?"),
    (SERVE, "num_gpus: 1", "num_gpus: 0", "device is cuda but num_gpus is 0: Ray hides the GPUs from such a replica; set num_gpus"),
    (SERVE, "num_slots: 24", "num_slot: 24", "engine.num_slot: unknown key; did you mean 'num_slots'?"),
    (SERVE, "max_ongoing_requests: 48", "max_ongoing_requests: 5", "max_ongoing_requests (5) is below engine.num_slots (24)"),
    (SERVE, "max_replicas: 8", "max_replicas: 0", "autoscaling.max_replicas: Input should be greater than 0, found 0"),
    (SERVE, "min_replicas: 1", "min_replicas: 9", "max_replicas (8) is below min_replicas (9)"),
    (SERVE, "host: 127.0.0.1", "host: 0.0.0.0", "host is 0.0.0.0, which others can reach, and there are no api_keys"),
    (SERVE, "port: 8000", "port: 80000", "port: Input should be less than or equal to 65535, found 80000"),
]
CLUSTERS = [
    (AWS, "upscaling_speed: 2", "upscaling_sped: 2", "upscaling_sped: unknown key; did you mean 'upscaling_speed'?"),
    (AWS, "head_node_type: head", "head_node_type: heads", "ray up would stop: `head_node_type` must be one of `available_node_types`."),
    (AWS, "    priority: 1  #", "    prioritty: 1  #", "available_node_types.train_spot.prioritty: unknown key; did you mean 'priority'?"),
    (AWS, "  region: us-east-1", "  regions: us-east-1", "provider.regions: unknown key, which Ray would ignore; did you mean 'region'?"),
    (AWS, "InstanceType: m7i.8xlarge", "InstanceTyp: m7i.8xlarge",
     "node_config: InstanceTyp: unknown key of input; did you mean 'InstanceType'?"),
    (AWS, "VolumeSize: 200", "VolumeSize: large", "Invalid type for parameter BlockDeviceMappings[0].Ebs.VolumeSize, value: large"),
    (AWS, "HttpTokens: required", "HttpToken: required", "HttpToken: unknown key of MetadataOptions; did you mean 'HttpTokens'?"),
    (AWS, "      IamInstanceProfile: {Name: pixellm-node}\n", "", "no IamInstanceProfile: the node could not read S3"),
    (AWS, '"--env=RAY_AUTH_MODE=token", ', "", "whoever reaches the cluster could run code on it; put RAY_AUTH_MODE=token"),
    (AWS, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "the dashboard listens on 0.0.0.0; write --dashboard-host=127.0.0.1"),
    (AWS, "--dashboard-host=127.0.0.1 ", "", "the dashboard listens on what Ray thinks best; write --dashboard-host=127.0.0.1"),
    (AWS, "--metrics-export-port=8080\n", "--metric-export-port=8080\n",
     "ray start --metric-export-port: unknown flag; did you mean '--metrics-export-port'?"),
    (AWS, " --autoscaling-config=~/ray_bootstrap_config.yaml", "", "`ray start` lacks --autoscaling-config"),
    (AWS, "--address=$RAY_HEAD_IP:6379 ", "", "`ray start` lacks --address; the node would not be part of this cluster"),
    (AWS, "CidrIp: 10.0.0.0/8", "CidrIp: 0.0.0.0/0", "port 22 is open to the whole internet; name the networks that may"),
    (AWS, "  train_spot:\n    min_workers: 0", "  train_spot:\n    min_workers: 2",
     "min_workers is 2: GPU nodes that wait cost as much as those that work; write 0"),
    (AWS, "    min_workers: 0\n    max_workers: 16", "    min_workers: 20\n    max_workers: 16", "min_workers is 20, max_workers 16"),
    (AWS, "pixellm.io/role: data", '"pixellm.io/role of": data', "labels: "),
    (AWS, "idle_timeout_minutes: 10", "idle_timeout_minutes: ten", "found 'ten', write one that is a YAML number"),
    (AWS, "cluster_name: pixellm-train", "cluster_name: pixellm-train\nenv: {AWS_SECRET_ACCESS_KEY: abcdefgh12345678}",
     "this is an AWS secret key; take it out"),
    (HOSTS, "worker_ips: [10.0.0.11, 10.0.0.12,", "worker_ips: [10.0.0.11, 10.0.0.11,", "10.0.0.11 is there twice; each host is one node"),
    (HOSTS, "  head_ip: 10.0.0.10\n", "", "ray up would stop: "),
    (HOSTS, "  image: registry.example.com/pixellm/train:0.1.0-cpu\n", "", "ray up would stop: "),
]
BROKEN = RUNS + DEPLOYMENTS + CLUSTERS
