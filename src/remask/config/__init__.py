"""What a user can set: frozen dataclasses, read from strict YAML and overridden by dotted flags. Loads no torch.

An unknown key or a wrong type is one error naming the key; `dump` then `load` is the identity.
"""

from remask.config.commands import (
    ConvertConfig,
    DistilConfig,
    DoctorConfig,
    EvalConfig,
    GenerateConfig,
    GradeConfig,
    InspectConfig,
    PlanConfig,
    PushConfig,
    TourConfig,
)
from remask.config.common import (
    DecodingConfig,
    EngineConfig,
    LoraConfig,
    RowEngineConfig,
    TrainerConfig,
)
from remask.config.instruments import EstimatorsConfig
from remask.config.preference import DpoConfig, PreferenceChoicesConfig, PreferenceEngineConfig
from remask.config.read import dump, from_dict, load, refuse_altered, refuse_impossible, sealed
from remask.config.rl import (
    HeldOutConfig,
    PolicyChoicesConfig,
    PolicyEngineConfig,
    ReferenceConfig,
    RewardsConfig,
    RlConfig,
    RolloutConfig,
)
from remask.config.sft import CanvasConfig, ChoicesConfig, ProbeConfig, ProfileConfig, ReportConfig, SftConfig
from remask.config.spelling import respelled
from remask.config.study import StudyConfig

__all__ = [
    "CanvasConfig",
    "ChoicesConfig",
    "ConvertConfig",
    "DecodingConfig",
    "DistilConfig",
    "DoctorConfig",
    "DpoConfig",
    "EngineConfig",
    "EstimatorsConfig",
    "EvalConfig",
    "GenerateConfig",
    "GradeConfig",
    "HeldOutConfig",
    "InspectConfig",
    "LoraConfig",
    "PlanConfig",
    "PolicyChoicesConfig",
    "PolicyEngineConfig",
    "PreferenceChoicesConfig",
    "PreferenceEngineConfig",
    "ProbeConfig",
    "ProfileConfig",
    "PushConfig",
    "ReferenceConfig",
    "ReportConfig",
    "RewardsConfig",
    "RlConfig",
    "RolloutConfig",
    "RowEngineConfig",
    "SftConfig",
    "StudyConfig",
    "TourConfig",
    "TrainerConfig",
    "dump",
    "from_dict",
    "load",
    "refuse_altered",
    "refuse_impossible",
    "respelled",
    "sealed",
]
