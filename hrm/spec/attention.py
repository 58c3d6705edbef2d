"""Shapes of one attention: grouped-query (of which MHA and MQA are cases) or multi-head latent (MLA)."""

from dataclasses import dataclass

from hrm.spec.linear import Linear, total_parameters


@dataclass(frozen=True)
class AttentionSpec:
    """Widths in elements. An MLA has `kv_lora_rank` set; its rotary and non-rotary widths sum to `head_dim`.

    `window` is the number of tokens a query can see at most (None: all of the context). It slides with the
    query, unless `window_is_chunk`: then the context is cut into chunks of `window` tokens and a query sees
    only its own. In an MLA `q_bias` and `kv_bias` are those of q_a_proj and kv_a_proj_with_mqa.
    """

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # width of one query or key head
    v_head_dim: int  # width of one value head; equals head_dim unless MLA
    window: int | None = None
    window_is_chunk: bool = False
    kv_lora_rank: int | None = None  # None: grouped-query attention
    q_lora_rank: int | None = None  # None: queries are projected in one step
    qk_rope_head_dim: int = 0  # MLA only: the rotary part of head_dim, shared by all heads in the cache
    qk_nope_head_dim: int = 0  # MLA only
    q_bias: bool = False
    kv_bias: bool = False
    o_bias: bool = False
    q_norm_size: int = 0  # elements of the norm on queries: head_dim (Qwen3) or the whole projection (OLMoE)
    k_norm_size: int = 0
    sinks: bool = False  # one learned logit per query head (gpt-oss)
    relative_bias_size: int = 0  # elements of a T5 relative attention bias held by this layer

    @property
    def is_mla(self) -> bool:
        """Whether K and V are cached as one latent (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""
        return self.kv_lora_rank is not None

    @property
    def kv_width(self) -> int:
        """Elements cached per token and layer.

        K and V of every KV head, or for an MLA the latent and the rotary key that all heads share
        (arXiv 2405.04434, table 1). An implementation that caches an MLA's expanded heads takes more.
        """
        if self.kv_lora_rank is not None:
            return self.kv_lora_rank + self.qk_rope_head_dim
        return self.num_key_value_heads * (self.head_dim + self.v_head_dim)

    @property
    def q_width(self) -> int:
        """Elements of all query heads of one token."""
        return self.num_attention_heads * self.head_dim

    @property
    def o_width(self) -> int:
        """Elements of all attention outputs of one token, the input of o_proj."""
        return self.num_attention_heads * self.v_head_dim

    def linears(self, hidden_size: int) -> tuple[Linear, ...]:
        """Every projection: q, k, v, o, or the factors of an MLA."""
        o = Linear("o_proj", self.o_width, hidden_size, self.o_bias)
        if self.kv_lora_rank is not None:
            return (*self._mla_q(hidden_size), *self._mla_kv(hidden_size, self.kv_lora_rank), o)
        return (
            Linear("q_proj", hidden_size, self.q_width, self.q_bias),
            Linear("k_proj", hidden_size, self.num_key_value_heads * self.head_dim, self.kv_bias),
            Linear("v_proj", hidden_size, self.num_key_value_heads * self.v_head_dim, self.kv_bias),
            o,
        )

    def _mla_q(self, hidden_size: int) -> tuple[Linear, ...]:
        if self.q_lora_rank is None:
            return (Linear("q_proj", hidden_size, self.q_width),)
        return (
            Linear("q_a_proj", hidden_size, self.q_lora_rank, self.q_bias),
            Linear("q_b_proj", self.q_lora_rank, self.q_width),
        )

    def _mla_kv(self, hidden_size: int, rank: int) -> tuple[Linear, ...]:
        expanded = self.num_attention_heads * (self.qk_nope_head_dim + self.v_head_dim)
        return (
            Linear("kv_a_proj_with_mqa", hidden_size, rank + self.qk_rope_head_dim, self.kv_bias),
            Linear("kv_b_proj", rank, expanded),
        )

    @property
    def norm_parameters(self) -> int:
        """Norms inside the attention: on queries and keys, or on the latents of an MLA."""
        return self.q_norm_size + self.k_norm_size + (self.kv_lora_rank or 0) + (self.q_lora_rank or 0)

    def parameters(self, hidden_size: int) -> int:
        """Elements of the projections with their biases, sinks and relative bias; norms are counted apart."""
        sinks = self.num_attention_heads if self.sinks else 0
        return total_parameters(self.linears(hidden_size)) + sinks + self.relative_bias_size
