"""What differs between families of vision-language models."""

VISION = ("vision_tower", "vision_model", "visual")
PROJECTOR = ("multi_modal_projector", "connector", "merger")
