from toque.registry.models.versions import SERVING_TAGS, serving_tags


def test_only_the_tags_that_change_the_serving_are_selected():
    tags = {"feature_service": "flights", "max_batch_rows": "32", "owner": "ada", "toque.allow_code": "a.pkl"}
    assert serving_tags(tags) == {"feature_service": "flights", "max_batch_rows": "32"}
    assert serving_tags(dict.fromkeys(SERVING_TAGS, "x")).keys() == SERVING_TAGS
