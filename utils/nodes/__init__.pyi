from .scans import scan_layer as scan_layer
from .scans import summarise as summarise
from .selectors import compare_selectors as compare_selectors
from .selectors import select_nodes as select_nodes
from .sets import NodeSet as NodeSet
from .sets import membership as membership
from .sets import node_frequencies as node_frequencies
from .sets import node_profiles as node_profiles
from .sets import node_sets as node_sets
from .sets import overlap as overlap
from .sets import top_nodes as top_nodes
    compare_sides as compare_sides,
)
    rule_agreement as rule_agreement,
)
    rule_sets as rule_sets,
)
    vector_overlap as vector_overlap,
)
from .stability import node_stability as node_stability
from .agreement import rule_agreement as rule_agreement
from .agreement import set_recurrence as set_recurrence
from .agreement import vector_overlap as vector_overlap
from .significance import compare_sides as compare_sides
from .significance import rule_sets as rule_sets
