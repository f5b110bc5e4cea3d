"""Who sold a call: from the names that LangChain reports to a model of the price table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import NamedTuple

from genai_prices.types import ModelInfo, Provider

from runtap_consumers.pricing.overrides import Overrides, OwnTerms

# Names that LangChain and its routers give to providers, where they are not genai-prices' own.
_PROVIDER_IDS = {
    "amazon_bedrock": "aws",
    "anthropic_bedrock": "aws",
    "azure_ai": "azure",
    "azure_inference": "azure",
    "azure_openai": "azure",
    "bedrock": "aws",
    "bedrock_converse": "aws",
    "cohere_chat": "cohere",
    "fireworks_ai": "fireworks",
    "gemini": "google",
    "google_anthropic_vertex": "google",
    "google_genai": "google",
    "google_vertexai": "google",
    "mistralai": "mistral",
    "moonshot": "moonshotai",
    "together_ai": "together",
    "togetherai": "together",
    "vertex_ai": "google",
    "vertexai": "google",
    "voyage": "voyageai",
    "xai": "x-ai",
}
# Own hardware or a subscription: their models must not get the token price of a model of the same name.
_NOT_SOLD_BY_TOKEN = frozenset(
    {
        "gpt4all",
        "huggingface",
        "llama_cpp",
        "llamacpp",
        "lmstudio",
        "mlx",
        "ollama",
        "openai-codex",
        "vllm",
        "xinference",
    }
)
# Clients that others' servers are called with, too: where the host is one that nobody knows, so is the seller.
_SPOKEN_BY_OTHERS = frozenset({"openai", "anthropic"})
UNKNOWN_SELLER = "host:"
# Bill by what they chose upstream, and say in each answer how much: what they list is not that.
_BILL_IN_THE_ANSWER = frozenset({"openrouter"})
# Sell others' models as `maker/model`, at the makers' prices: docs.perplexity.ai, Agent API ("no markup").
_RESELLERS_AT_LIST_PRICE = frozenset({"perplexity"})
# Azure sells OpenAI's models at OpenAI's prices in each tier (`test_price_tables.py` compares them), flex at half:
# learn.microsoft.com, "Use Flex processing".
_SAME_TIERS = frozenset({("azure", "openai")})
# `mistralai/…` names weights on Hugging Face, which anybody may be serving.
_WEIGHTS_PREFIXES = frozenset({"mistralai"})
# `models/…` of the Gemini API, `publishers/google/models/…` of Vertex.
_GOOGLE_PATH = re.compile(r"^(projects/.*/|publishers/.*/)?models/")


class Sold(NamedTuple):
    """What was sold: a model of the table, the provider whose call it was and the one that lists the model (another,
    where it is resold), and the owner's own terms. `model` is `None` where the terms alone say what it costs.
    """

    name: str
    provider: Provider | None = None
    maker: Provider | None = None
    model: ModelInfo | None = None
    terms: OwnTerms = OwnTerms()

    @property
    def is_listed_by_its_seller(self) -> bool:
        """Whether its name alone says what is billed: of a reseller's, only the answer says which model it was."""
        return bool(self.terms.prices) or self.provider is self.maker

    @property
    def tiers_of(self) -> str | None:
        """Whose service tiers it is sold in: one provider's say nothing of another who sells the same model."""
        if self.provider is None or self.maker is None:
            return None
        is_same = self.provider is self.maker or (self.provider.id, self.maker.id) in _SAME_TIERS
        return self.maker.id if is_same else None


class Sellers:
    """Finds models by name. Slow (up to milliseconds): for the caller to remember."""

    def __init__(self, providers: Sequence[Provider], overrides: Overrides | None = None) -> None:
        self._providers = list(providers)
        self._overrides = overrides or Overrides()
        self._by_id = {provider.id: provider for provider in providers}

    def seller_at(self, provider: str | None, host: str) -> str | None:
        """Who is paid for a call of a provider's client that was told to call a host: by the owner's word, by the
        addresses that genai-prices knows; `host:…` where nobody knows.
        """
        name = (provider or "").strip().lower()
        if own := self._overrides.seller_at(host):
            return own
        if name in _NOT_SOLD_BY_TOKEN:
            return provider
        home = self._provider(name) if name else None
        known = [each for each in self._providers if re.match(each.api_pattern, f"https://{host}/")]
        if home in known or (not known and home is not None and home.id not in _SPOKEN_BY_OTHERS):
            return provider
        return known[0].id if known else f"{UNKNOWN_SELLER}{host}"

    def find(self, provider: str | None, model: str | None) -> Sold | None:
        """The model that was billed, `None` where that is unknown or nobody bills it by the token."""
        if not model:
            return None
        seller = (provider or "").strip().lower()
        if seller.startswith(UNKNOWN_SELLER):
            # Known by now, perhaps.
            seller = self.seller_at(None, seller.removeprefix(UNKNOWN_SELLER)) or seller
        given = _GOOGLE_PATH.sub("", model.strip().lower())
        home = self._provider(seller) if seller else None
        sellers = {seller, _PROVIDER_IDS.get(seller, seller)} | ({home.id} if home else set())
        name = self._overrides.real_name(sellers, given)
        found = next(self._candidates(seller, name), None)
        names = {given, name}
        if found is not None and found.provider is not None and (not seller or found.provider is home):
            # The owner's prices may name the model without its maker, and the maker as the provider.
            names.add(found.name)
            if not seller:
                sellers |= {
                    found.provider.id,
                    *(each for each, own in _PROVIDER_IDS.items() if own == found.provider.id),
                }
        terms = self._overrides.terms(sellers, names)
        if found is None:
            return Sold(name, terms=terms) if terms.prices else None
        return found._replace(terms=terms)

    def nearest(self, provider: str | None, model: str, at_most: int = 3) -> list[str]:
        """Known models with names most like an unknown one, as `provider/model`; of the provider, if it is known."""
        wanted = model.strip().lower().rpartition("/")[2]
        home = self._provider(provider.strip().lower()) if provider else None
        known: dict[str, str] = {}
        # Of one name, the seller asked for; else who makes such models rather than who sells all kinds.
        makers_first = sorted(self._providers, key=lambda each: each.model_match is None)
        for each in [home, *makers_first] if home else makers_first:
            for one in each.models:
                known.setdefault(one.id.rpartition("/")[2].lower(), f"{each.id}/{one.id}")
        return [known[name] for name in get_close_matches(wanted, known, at_most, cutoff=0.6)]

    def _candidates(self, provider: str, name: str) -> Iterator[Sold]:
        """Likeliest first: the provider itself; a seller named before a slash; the maker known by such names.

        The last two only where the provider is unknown, or `openai`: its client speaks to everybody (`base_url`); but a
        reseller's prices are those of the maker before the slash.
        """
        if provider in _NOT_SOLD_BY_TOKEN or provider.startswith(UNKNOWN_SELLER):
            return
        home = self._provider(provider) if provider else None
        if home:
            yield from self._models(home, name)
        may_be_another = home is None or home.id == "openai"
        prefix, _, own_name = name.partition("/")
        seller = self._by_id.get(_PROVIDER_IDS.get(prefix, prefix)) if own_name else None
        if seller and (seller is home or (may_be_another and prefix not in _WEIGHTS_PREFIXES)):
            yield from self._models(seller, own_name)
        elif seller and home and home.id in _RESELLERS_AT_LIST_PRICE:
            yield from (sold._replace(provider=home) for sold in self._models(seller, own_name))
        # A tag (`deepseek-r1:8b`) is Ollama's way to name weights.
        if may_be_another and ":" not in name:
            for maker in self._providers:
                if maker.model_match is not None and maker.model_match.is_match(name):
                    yield from self._models(maker, name)
                    return

    def _models(self, provider: Provider, name: str) -> Iterator[Sold]:
        if provider.id in _BILL_IN_THE_ANSWER:
            return
        if model := provider.find_model(name, all_providers=self._providers):
            # By identity: two providers may list equal models.
            maker = next(each for each in (provider, *self._providers) if any(model is own for own in each.models))
            yield Sold(name, provider, maker, model)

    def _provider(self, name: str) -> Provider | None:
        if provider := self._by_id.get(_PROVIDER_IDS.get(name, name)):
            return provider
        matches = (each for each in self._providers if each.provider_match and each.provider_match.is_match(name))
        return next(matches, None)
