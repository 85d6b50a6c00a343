-- Blocks that can hold a matching span, the one with the latest start first.
-- :tags is a JSON array of tag hashes, all of which the block must have.
SELECT id, max_start
FROM blocks
WHERE max_start >= :since AND min_start <= :until
  AND max_duration >= :min_duration AND min_duration <= :max_duration
  AND NOT EXISTS (
      SELECT 1 FROM json_each(:tags) AS wanted
      WHERE NOT EXISTS (
          SELECT 1 FROM block_tags WHERE block = blocks.id AND tag = wanted.value
      )
  )
ORDER BY max_start DESC, id DESC
