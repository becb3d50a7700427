"""Differential privacy that a job asks for: whose presence is hidden, and how well."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from cloister.job.spec import Name, Positive, spec
from cloister.vector.errors import JobError

Epsilon = Annotated[float, Field(gt=0, le=100)]
Delta = Annotated[float, Field(gt=0, le=0.01)]
MEASURED_SHARE = 0.25  # of epsilon that all evaluations together would cost alone; training then has 97% of it


@spec
class RowDP:
    """Hides each row, or each patient: noisy gradient steps (DP-SGD) at every site, on rows drawn at random.

    The site draws the rows of a step (Poisson sampling), clips each row's gradient and adds noise to their sum. What
    leaves, and the model, hardly depends on any one row, whoever looks at it. (Abadi et al., CCS 2016,
    https://arxiv.org/abs/1607.00133.)

    Attributes:
      epsilon, delta: for the whole job, each row of every site; delta well below 1 / rows.
      clip: largest L2 norm of one row's gradient; longer ones are scaled down. About that of most rows is best.
      unit: a column that says whose row it is: then everything holds for a person with many rows. List it in
        the contract's `ignore`.
    """

    epsilon: Epsilon
    delta: Delta
    clip: Positive = 1.0
    unit: Name | None = None

    protects: ClassVar[str] = "rows"


@spec
class AdaptiveClip:
    """A clip that follows a quantile of the sites' norms: Andrew, Thakkar, McMahan, Ramaswamy, NeurIPS 2021,
    https://arxiv.org/abs/1905.03871, algorithm 1. How many sites are below it rides in the sealed sum, with noise.

    Attributes: initial: first clip. quantile: of sites whose delta is not clipped. lr: of the clip's logarithm.
    """

    initial: Positive = 0.1
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.5
    lr: Positive = 0.2


@spec
class SiteDP:
    """Hides each site (or device): every site adds a share of discrete Gaussian noise before it masks.

    Nobody ever sees a sum without noise, the coordinator included. Every site counts the same, however many rows it
    has. It takes many sites to learn anything under a small epsilon. (Kairouz, Liu, Steinke, ICML 2021,
    https://arxiv.org/abs/2102.06387.)

    Attributes:
      epsilon, delta: for the whole job, each site.
      clip: largest L2 norm of one site's delta: a number, or `AdaptiveClip(...)`.
      colluders: sites whose noise does not count, for they may work with the coordinator; None: as many as the seal
        withstands.
      central: whoever opens the sum adds the noise. Weaker, and for simulations only: sites refuse it.
    """

    epsilon: Epsilon
    delta: Delta
    clip: Positive | AdaptiveClip = 1.0
    colluders: Annotated[int, Field(ge=0)] | None = None
    central: bool = False

    protects: ClassVar[str] = "sites"

    def __post_init__(self) -> None:
        if self.central and self.colluders:
            raise JobError("SiteDP: central noise is nobody's share.", mend="Leave colluders out.")
