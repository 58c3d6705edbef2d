"""From a policy to how a model's memory is laid out, and back to what the runtime cannot do yet."""

from dataclasses import dataclass

from hrm.errors import PolicyError
from hrm.roofline.sizes import Sizes
from hrm.schedule.build import page_plan
from hrm.schedule.pages import PagePlan
from hrm.schedule.placement import Placement
from hrm.schedule.registry import placement_of
from hrm.schedule.slice import MicroBatch, PassSlice, decode_slice
from hrm.spec.policy import Policy
from hrm.spec.precision import Precision
from runtime.checkpoint.source import WeightSource
from runtime.dtypes import dtype_name
from runtime.memory.expert_layout import ExpertLayout, by_expert, by_rows
from runtime.memory.paging import Paging, Region, lay_region, make_paging
from runtime.models.config import ModelConfig

_PREFILL = PassSlice((MicroBatch(prompt_tokens=1, prompts=1.0, prompt_len=1.0, prompt_len_sq=1.0),))


@dataclass(frozen=True)
class PolicyLayout:
    """How a policy's experts are cut, and how pages of its passes lie in the pool."""

    sizes: Sizes
    policy: Policy
    placement: Placement
    experts: ExpertLayout
    region: Region  # of all slabs in CPU memory

    def paging(self, plan: PagePlan, decodes: bool) -> Paging:
        """Pages of a pass; one that only prefills streams the CPU's slabs too."""
        count = len(self.experts.streamed) if decodes else len(self.experts.host)
        region = Region(self.region.slabs[:count], self.region.starts[: count + 1])
        return make_paging(plan, region, double_buffer=self.placement.pool_layers == 2)

    def pool_bytes(self) -> int:
        """GPU memory for the pages of any pass: how many there are depends on its tokens, the memory does not."""
        decode = page_plan(self.sizes, decode_slice(self.policy, 1.0), self.policy)
        prefill = page_plan(self.sizes, _PREFILL, self.policy)
        return max(self.paging(decode, True).pool_bytes, self.paging(prefill, False).pool_bytes)


def lay_out(config: ModelConfig, sizes: Sizes, policy: Policy) -> PolicyLayout:
    """The layout of a model's memory under a policy.

    Raises:
        PolicyError: a policy that the runtime cannot run, or that contradicts its schedule.
    """
    _check(policy)
    placement = placement_of(policy)
    resident, on_gpu = policy.weights_on_gpu, policy.experts_on_gpu
    if policy.caches_whole_experts:
        experts = by_expert(config, 0.0, 1.0)
    elif placement.overlap == "on_demand":
        experts = by_expert(config, resident, on_gpu)
    elif placement.pool_layers == 2:
        experts = by_rows(config, resident, on_gpu, 1, 1)
    else:
        decode = max(page_plan(sizes, decode_slice(policy, 1.0), policy).per_layer)
        prefill = max(page_plan(sizes, _PREFILL, policy).per_layer)
        experts = by_rows(config, resident, on_gpu, decode, prefill)
    region = lay_region(experts.host, config.hidden_size, config.dtype.itemsize)
    return PolicyLayout(sizes, policy, placement, experts, region)


def layout_of(model: WeightSource, policy: Policy) -> PolicyLayout:
    """How the policy lays out the model's memory. Raises PolicyError."""
    name = dtype_name(model.config.dtype)
    return lay_out(model.config, Sizes(model.spec, Precision(name, name, name, name)), policy)


def _check(policy: Policy) -> None:
    if policy.weights_on_disk > 0:
        raise PolicyError(
            f"policy: weights_on_disk {policy.weights_on_disk:g}, but the runtime does not yet read weights from disk "
            "while it runs; search with a profile that states no disk"
        )
    if policy.tensor_parallel_size > 1:
        raise PolicyError(
            f"policy: tensor_parallel_size {policy.tensor_parallel_size}, but the runtime drives one GPU; search with "
            "a profile of device_count 1"
        )
