"""The pool's operations: the rules, without HTTP and SQL.

operations             the operations of this pool in one object
delivery               a vehicle asks for its contracts
turns                  the next contract, for callers that can forward one only
contract_data          eMSPs, vehicle makers and operators read contracts
publication            a provisioning service publishes a contract
maintenance            contracts are withdrawn, set as default, invalidated, purged, erased
contract_invalidation  provisioning events, and which contracts they invalidate
purging                finds contracts that may be purged
verification_reports   every check on a message, explained
remote                 the operations of another pool
peers                  other pools: broadcasts, and requests addressed to one of them
"""
