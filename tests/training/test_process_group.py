"""Which network workers speak over."""

from nnit_dist.training.process_group import interface_of


def test_the_interface_of_an_address_is_found():
    assert interface_of("127.0.0.1").startswith("lo")
    assert interface_of("203.0.113.9") is None
