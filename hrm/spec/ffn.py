"""Shapes of one feed-forward network: dense, or routed experts with optional shared experts."""

from dataclasses import dataclass

from hrm.spec.linear import Linear, total_parameters


@dataclass(frozen=True)
class FfnSpec:
    """`num_experts` and `top_k` are 0 for a dense FFN. Widths in elements."""

    num_experts: int
    top_k: int
    intermediate_size: int  # of one routed expert, or of the dense FFN
    shared_intermediate_size: int  # total width of the shared experts, 0 without
    gated: bool  # gate, up, down (SwiGLU) instead of up, down
    bias: bool = False  # every matrix of the experts or of the dense FFN has a bias
    router_bias: bool = False
    correction_bias: bool = False  # e_score_correction_bias (DeepSeek-V3): stored, one per expert
    shared_expert_gate: bool = False  # Qwen2-MoE's sigmoid gate, hidden_size x 1

    @property
    def is_moe(self) -> bool:
        """Whether tokens are routed."""
        return self.num_experts > 0

    def expert_linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices of one routed expert; none for a dense FFN."""
        return self._mlp(hidden_size, self.intermediate_size, self.bias) if self.is_moe else ()

    def dense_linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices of a dense FFN; none for an MoE."""
        return () if self.is_moe else self._mlp(hidden_size, self.intermediate_size, self.bias)

    def shared_linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The matrices of all shared experts side by side (their sum is one wider FFN), then their gate."""
        if not self.shared_intermediate_size:
            return ()
        gate = (Linear("shared_expert_gate", hidden_size, 1),) if self.shared_expert_gate else ()
        return self._mlp(hidden_size, self.shared_intermediate_size, False) + gate

    def router_linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """The router's matrix; none for a dense FFN."""
        return (Linear("router", hidden_size, self.num_experts, self.router_bias),) if self.is_moe else ()

    def _mlp(self, hidden_size: int, width: int, bias: bool) -> tuple[Linear, ...]:
        gate = (Linear("gate_proj", hidden_size, width, bias),) if self.gated else ()
        up, down = Linear("up_proj", hidden_size, width, bias), Linear("down_proj", width, hidden_size, bias)
        return (*gate, up, down)

    def expert_parameters(self, hidden_size: int) -> int:
        """Elements of one routed expert; 0 for a dense FFN."""
        return total_parameters(self.expert_linears(hidden_size))

    def dense_parameters(self, hidden_size: int) -> int:
        """Elements of a dense FFN; 0 for an MoE."""
        return total_parameters(self.dense_linears(hidden_size))

    def shared_parameters(self, hidden_size: int) -> int:
        """Elements of all shared experts and their gate."""
        return total_parameters(self.shared_linears(hidden_size))

    def router_parameters(self, hidden_size: int) -> int:
        """Elements of the router with its bias and correction bias; 0 for a dense FFN."""
        return total_parameters(self.router_linears(hidden_size)) + self.num_experts * self.correction_bias
