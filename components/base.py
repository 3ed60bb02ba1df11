"""How every component is declared."""

import functools

from kfp import dsl

from vitdc import __version__

IMAGE = f"localhost/vitdc:{__version__}"
"""What `make image` builds; `kubernetes.image` names another. It holds kfp, too."""

component = functools.partial(dsl.component, base_image=IMAGE, install_kfp_package=False)
