from .attention import compare_groups as compare_groups
from .attention import persona_attention as persona_attention
from .attribution import attribute as attribute
from .effects import summarise_cells as summarise_cells
from .grid import patch as patch
from .logit_terms import logit_terms as logit_terms
from .logit_terms import persona_terms as persona_terms
