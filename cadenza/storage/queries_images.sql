-- Named queries of names of images.

-- name: image_name_all
SELECT environment, name, tag, image_id, published_at, published_by FROM image_name;

-- name: image_name_put
INSERT INTO image_name (environment, name, tag, image_id, published_at, published_by) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (environment, name, tag) DO UPDATE SET image_id = excluded.image_id,
    published_at = excluded.published_at, published_by = excluded.published_by;

-- name: image_name_drop
DELETE FROM image_name WHERE environment = ? AND name = ? AND tag = ?;

-- name: image_publication_put
INSERT INTO image_publication (environment, name, tag, image_id, published_at, published_by)
VALUES (?, ?, ?, ?, ?, ?);

-- name: image_publication_list
SELECT name, tag, environment, image_id, published_at, published_by FROM image_publication
WHERE environment = ? AND name = ? ORDER BY published_at DESC LIMIT ?;

-- name: environment_images_move
UPDATE image_name SET environment = ? WHERE environment = ?;

-- name: environment_publications_move
UPDATE image_publication SET environment = ? WHERE environment = ?;

-- name: environment_images_drop
DELETE FROM image_name WHERE environment = ?;

-- name: environment_publications_drop
DELETE FROM image_publication WHERE environment = ?;
