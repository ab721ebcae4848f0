from .fit import PersonaVectors as PersonaVectors
from .fit import persona_vectors as persona_vectors
from .judgement import choose_layer as choose_layer
from .judgement import judge_vectors as judge_vectors
from .steering import ablate_vectors as ablate_vectors
from .steering import add_vectors as add_vectors
from .steering import cap_vectors as cap_vectors
from .steering import steering as steering
