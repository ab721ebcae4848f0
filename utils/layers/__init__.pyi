from .reduction import reduce as reduce
from .separation import best_layer as best_layer
from .separation import divergence as divergence
from .separation import layer_stability as layer_stability
from .thirds import layer_thirds as layer_thirds
from .thirds import model_thirds as model_thirds
from .topics import topic_divergence as topic_divergence
