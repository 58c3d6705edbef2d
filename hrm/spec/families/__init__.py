"""One reader per Hugging Face model_type: a new family is one file and one line."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from hrm.spec.config_fields import ConfigFields
from hrm.spec.families.dbrx import read_dbrx
from hrm.spec.families.deepseek import read_deepseek_v2, read_deepseek_v3
from hrm.spec.families.glm import read_glm4_moe
from hrm.spec.families.gpt_oss import read_gpt_oss
from hrm.spec.families.llama import read_llama
from hrm.spec.families.llama4 import read_llama4, read_llama4_text
from hrm.spec.families.mixtral import read_mixtral, read_phimoe
from hrm.spec.families.olmoe import read_olmoe
from hrm.spec.families.opt import read_opt
from hrm.spec.families.qwen import read_qwen2_moe, read_qwen3_moe
from hrm.spec.families.switch import read_switch
from hrm.spec.model import ModelSpec

Reader = Callable[[ConfigFields, str], ModelSpec]

FAMILIES: Mapping[str, Reader] = MappingProxyType(
    {
        "dbrx": read_dbrx,
        "deepseek_v2": read_deepseek_v2,
        "deepseek_v3": read_deepseek_v3,
        "glm4_moe": read_glm4_moe,
        "gpt_oss": read_gpt_oss,
        "llama": read_llama,
        "llama4": read_llama4,
        "llama4_text": read_llama4_text,
        "mixtral": read_mixtral,
        "olmoe": read_olmoe,
        "opt": read_opt,
        "phimoe": read_phimoe,
        "qwen2_moe": read_qwen2_moe,
        "qwen3_moe": read_qwen3_moe,
        "switch_transformers": read_switch,
    }
)
