# What Foreman and Vagrant do with libvirt, through fog and the bindings below it: ruby fog.rb DIR ROM TYPE
require "fog/libvirt"

DIRECTORY, ROM, TYPE = ARGV
UUID = /\h{8}(-\h{4}){3}-\h{12}/

def shown(value)
  value.inspect.gsub(UUID, "UUID").gsub(DIRECTORY, "DIR").gsub(/0x\h+/, "0x").gsub(/([0-9a-f]{2}:){5}[0-9a-f]{2}/, "MAC")
end

def step(name)
  puts "== #{name}"
  puts shown(yield)
  puts "exit status 0"
rescue StandardError => error
  code = error.respond_to?(:libvirt_code) ? [error.libvirt_code, error.libvirt_component, error.libvirt_level] : []
  puts "#{error.class} #{shown(error.message)} #{code}"
  puts "exit status 1"
end

compute = Fog::Compute.new(provider: :libvirt, libvirt_uri: "qemu:///system")
conn = compute.client
guest = <<XML
<domain type='#{TYPE}'><name>raw</name><memory unit='MiB'>32</memory><vcpu>2</vcpu><iothreads>1</iothreads>
<os><type arch='x86_64' machine='pc'>hvm</type><loader type='rom'>#{ROM}</loader></os><features><acpi/></features>
<devices><disk type='file'><driver name='qemu' type='qcow2'/><source file='#{DIRECTORY}/pool/a'/><target dev='vda' bus='virtio'/></disk>
<serial type='pty'/><graphics type='vnc' port='-1'/><video><model type='vga'/></video></devices></domain>
XML

step("node") { compute.nodes.map { |node| [node.model, node.type, node.hostname.empty?] } }
step("pool") do
  pool = compute.pools.create(xml: "<pool type='dir'><name>default</name><target><path>#{DIRECTORY}/pool</path></target></pool>", persistent: true, autostart: true)
  pool.build
  pool.start
  [pool.name, pool.persistent?, pool.auto_start?, pool.active?, pool.num_of_volumes, pool.state]
end
step("volume") do
  volume = compute.volumes.create(name: "a", format_type: "qcow2", capacity: "20M", allocation: "0", pool_name: "default")
  [volume.path, volume.format_type, volume.capacity, volume.key]
end
step("clone") { compute.volumes.all(name: "a").first.clone_volume("b").name }
step("upload") do
  File.write("#{DIRECTORY}/upload", "x" * 300_000)
  volume = compute.volumes.create(name: "c", format_type: "raw", capacity: "1M", allocation: "0", pool_name: "default")
  volume.upload_image("#{DIRECTORY}/upload")
  File.size("#{DIRECTORY}/pool/c")
end
step("volumes") { compute.volumes.all.map { |it| [it.name, it.format_type, it.pool_name] }.sort }
step("server") do
  server = compute.servers.create(name: "web", memory_size: 65_536, cpus: 1, domain_type: TYPE, volumes: [compute.volumes.all(name: "b").first],
                                  nics: [], display: { type: "vnc", port: "-1", listen: "127.0.0.1", password: "" }, cpu: {})
  [server.name, server.state, server.memory_size, server.cpus, server.volumes.map(&:name), server.autostart, server.active]
end
server = compute.servers.all(name: "web").first
%i[start suspend resume reboot poweroff].each do |action|
  step(action) { [server.public_send(action), compute.servers.all(name: "web").first.state] }
end
step("again") { server.poweroff }
step("display") { server.update_display(type: "vnc", listen: "0.0.0.0").display[:listen] }
step("autostart") { [server.update_autostart(true), server.reload.autostart] }
step("destroy") { [server.destroy(destroy_volumes: true), compute.servers.all.length, compute.volumes.all.map(&:name).sort] }
step("gone") { compute.servers.get("00000000-0000-0000-0000-000000000001") }

dom = conn.define_domain_xml(guest)
step("flags") { [dom.persistent?, dom.active?, dom.updated?, dom.autostart?, dom.os_type, dom.num_vcpus(2)] }
step("no vcpus") { dom.max_vcpus }
step("start") { dom.create }
step("state") { [dom.state, dom.info.state, dom.info.nr_virt_cpu, dom.max_memory, dom.control_info.state, dom.job_info.type] }
step("scheduler") { dom.scheduler_type }
step("no parameters") { dom.memory_parameters }
step("parameters") { [dom.block_iotune("vda"), dom.numa_parameters] }
step("limit") { dom.block_iotune = "vda", { "total_bytes_sec" => 4096 }; dom.block_iotune("vda")["total_bytes_sec"] }
step("wrong limit") { dom.block_iotune = "vda", { "total_bytes_sec" => 4096, "read_bytes_sec" => 1 } }
step("block") { [dom.blockinfo("vda").capacity, dom.block_stats("vda").wr_bytes, dom.block_stats_flags("vda").keys.sort] }
step("vcpus") { [dom.vcpus.map { |it| [it.number, it.state] }, dom.emulator_pin_info.length] }
step("pin") { dom.pin_vcpu(0, [0]); dom.vcpus.first.cpumap }
step("memory") { [dom.memory_stats.length.positive?, (dom.memory = 16_384)] }
step("key") { dom.send_key(0, 50, [30]) }
step("screenshot") { stream = conn.stream; mime = dom.screenshot(stream, 0); stream.abort; mime }
step("metadata") { dom.metadata = 1, "shown"; dom.metadata(1) }
step("no metadata") { dom.metadata(0) }
step("tag") { dom.metadata = 2, "<a/>", "k", "urn:x"; dom.metadata(2, "urn:x") }
step("attach") { dom.attach_device("<rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"); dom.xml_desc.scan(/<rng/).length }
step("wrong attach") { dom.attach_device("<rng") }
step("snapshot") { [dom.snapshot_create_xml("<domainsnapshot><name>s</name></domainsnapshot>").name, dom.num_of_snapshots, dom.has_current_snapshot?, dom.current_snapshot.name] }
step("children") { it = dom.lookup_snapshot_by_name("s"); [it.num_children, it.current?, it.has_metadata?, dom.list_all_snapshots.map(&:name)] }
step("revert") { dom.revert_to_snapshot(dom.lookup_snapshot_by_name("s")); dom.state }
step("forget") { dom.lookup_snapshot_by_name("s").delete; dom.num_of_snapshots }
step("save") { dom.save("#{DIRECTORY}/saved"); dom.active? }
step("saved") { conn.save_image_xml_desc("#{DIRECTORY}/saved")[/<name>.*?</] }
step("restore") { Libvirt::Domain.restore(conn, "#{DIRECTORY}/saved"); dom.active? }
step("managed") { dom.managed_save; [dom.has_managed_save?, dom.managed_save_remove, dom.has_managed_save?] }
step("core") { dom.create; dom.core_dump("#{DIRECTORY}/core"); File.size?("#{DIRECTORY}/core").positive? }
step("resize") { dom.block_resize("vda", 40 * 1024, 0); dom.blockinfo("vda").capacity }
step("job") { dom.abort_job }
step("time") { dom.time }
step("undefine") { dom.destroy; dom.undefine }
step("secret") do
  secret = conn.define_secret_xml("<secret ephemeral='no' private='no'><usage type='ceph'><name>k</name></usage></secret>")
  secret.set_value("value")
  [secret.usagetype, secret.usageid, secret.get_value, conn.num_of_secrets, secret.undefine]
end
step("host") { [conn.type, conn.max_vcpus("kvm").class, conn.node_free_memory.positive?, conn.secure?, conn.encrypted?, conn.alive?, conn.node_cpu_stats(-1).keys.sort] }
step("compare") { conn.compare_cpu("<cpu><model>nope</model></cpu>") }
step("wrong") { conn.define_domain_xml("<domain/>") }
step("closed") { conn.close; conn.closed? }
