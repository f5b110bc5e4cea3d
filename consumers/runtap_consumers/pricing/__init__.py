"""What a model call cost, in integer picodollars (10^-12 dollar).

The numbers and their meaning are genai-prices'; only the arithmetic is ours: its prices are quantised to a picodollar a
token once, when they are first needed, and every call after that is a few integer multiplications. A price that is
unknown gives `None`, never 0. Where runtap says less, or other, than `genai_prices.calc_price`:

- A model with a price for something that `Usage` does not count (image or video output, audio by the hour, characters,
  pages) has no price here: text prices for what may have been an image are wrong by a factor of ten. Searches in stored
  files, social searches and code executions are not counted either, but such a model keeps its token prices.
- A model without any price is free only where its id or name says so (`…:free`); elsewhere its price is unknown.
- Web searches of a model without a price for them are unknown, unless it is billed by the request (the search is what
  that fee pays for).
- Audio tokens without a price of their own are unknown in the output, and in the input of models named for audio (the
  table prices `gpt-4o-audio-preview` as text, an eighth of the bill); elsewhere input audio costs what input costs.
- Claude's one-hour cache writes cost twice the input price where the table has a single price for cache writes.
- A service tier costs what the table says for it. Where it says nothing for that model and day, OpenAI's flex and
  Anthropic's batch are half of the token prices, as both publish for all their models; any other tier is unknown
  (priority is 1.7 to 2.5 times standard, by model). Azure sells OpenAI's models in OpenAI's tiers.
- A resold model costs what its maker asks where the reseller says so: Azure, Vertex, Perplexity's `maker/model`. The
  reseller's web searches are its own, and of unknown price.
- What the table has wrong, or lacks, is in `corrections.toml`, each entry with its reason.
- Audio or image tokens beside cached tokens: which of them were cached is not known, so neither is the cost where the
  model prices both apart. genai-prices raises there, and where parts exceed their total.
"""

from runtap_consumers.pricing.table import PriceTable
from runtap_consumers.projections.batch import Priced

__all__ = ["PriceTable", "Priced"]
