"""What can be told to every command: a run is a YAML file and flags for one-off changes.

`openprime rl configs/rl/tiny.yaml --steps 5`. Imports no torch.
"""

from openprime.config.commands import (
    AskConfig,
    BenchmarkConfig,
    DemoConfig,
    EvaluateConfig,
    FolderConfig,
    GenerateConfig,
    NewModelConfig,
    OfflinePRMConfig,
    PlanConfig,
    ReportConfig,
    RLConfig,
    RunConfig,
    ScoreConfig,
    SFTConfig,
    VerifyStageConfig,
)
from openprime.config.reading import (
    explain,
    find_config,
    merge,
    package_configs,
    read_config,
)
from openprime.config.sections import (
    AdvantageConfig,
    CodeConfig,
    DataConfig,
    DistillConfig,
    EngineConfig,
    FilterConfig,
    JudgedDataConfig,
    LoRAConfig,
    OptimizerConfig,
    PolicyConfig,
    PRMConfig,
    PromptFormat,
    RolloutConfig,
    StepSplit,
    VerifyConfig,
    changed,
)
