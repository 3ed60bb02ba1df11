"""What a training optimises: an objective, and the clustering term of eq. 8 that joins any of them.

base             the interface: views of a batch, loss by parts, what is trained beside the model
supervised       cross-entropy with a target per image, a label or a pseudo-label
pseudo_labels    the targets of images without a label
self_supervised  two views of an image, or of it and a neighbour, agree
neighbours       the images nearest to each by their pixels
joint            the objective's loss + gamma * the clustering loss
initial          which of them the initial training takes

An objective takes arrays, tensors and configuration; it knows no path and saves nothing.
"""

from vitdc.objectives.base import Objective, Views
from vitdc.objectives.initial import choose_initial
from vitdc.objectives.joint import Anchors, Joint
from vitdc.objectives.neighbours import pixel_neighbours
from vitdc.objectives.pseudo_labels import pseudo_labels
from vitdc.objectives.self_supervised import SelfSupervised
from vitdc.objectives.supervised import Supervised

__all__ = [
    "Anchors",
    "Joint",
    "Objective",
    "SelfSupervised",
    "Supervised",
    "Views",
    "choose_initial",
    "pixel_neighbours",
    "pseudo_labels",
]
